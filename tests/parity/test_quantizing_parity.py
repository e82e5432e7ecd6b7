"""Every level against float32, in both runtimes, and every rewrite against ONNX Runtime's own quantiser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.quantization.quant_utils import quantize_data
from onnxruntime.transformers.float16 import convert_float_to_float16, convert_np_to_float16

from pywebml.errors import ConversionError
from pywebml.prepare.external_data import split
from pywebml.prepare.graph import tensors_of
from pywebml.prepare.quantizing import LEVELS, quantize
from pywebml.prepare.quantizing.blocks import quantize_rows
from pywebml.prepare.quantizing.bnb4 import BOUNDS, VALUES, ZERO, quantize_nf4
from pywebml.prepare.quantizing.float16 import to_half
from pywebml.prepare.quantizing.integer import Integers, quantize_columns, quantize_filters
from pywebml.prepare.quiet import quiet
from tests.onnx_models import Arrays, branch, branching_model, model_of, numbers, save, value
from tests.parity.web_runtime import run_in_web_runtime

VOCABULARY = 120
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
WEB_AGREES = {"fp32": 1e-5, "fp16": 2e-3, "q4f16": 2e-3, "q2f16": 2e-3, "q8": 0.02, "uint8": 0.02, "int8": 0.02}
"""Both runtimes, over the largest magnitude of the output. float16 and whole numbers round at every step, so a last
bit of difference may become a whole step; other levels only add in another order."""


@dataclass(frozen=True)
class Sample:
    """A float32 model, what to feed it, and its outputs in float32."""

    path: Path
    feeds: Arrays
    expected: dict[str, NDArray[Any]]


def run(path: Path, feeds: Arrays) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


def cosine(found: NDArray[Any], expected: NDArray[Any]) -> float:
    left, right = found.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def require_level(path: Path, sample: Sample, dtype: str) -> None:
    """Within the level's tolerance in both runtimes, which agree with each other."""
    native, web = run(path, sample.feeds), run_in_web_runtime(path, sample.feeds)
    assert native.keys() == web.keys() == sample.expected.keys()
    for name, expected in sample.expected.items():
        assert native[name].dtype == web[name].dtype == expected.dtype
        if not np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_array_equal(native[name], expected)
            continue
        for found in (native[name], web[name]):
            assert relative_error(found, expected) <= LEVELS[dtype].max_relative_error
            assert cosine(found, expected) >= LEVELS[dtype].min_cosine
        assert np.abs(native[name] - web[name]).max() <= WEB_AGREES.get(dtype, 1e-5) * np.abs(expected).max()


class FirstOutput(torch.nn.Module):
    def __init__(self, model: torch.nn.Module, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.model(x, **self.options)[0]
        return output


def export(folder: Path, name: str, model: torch.nn.Module, x: torch.Tensor, **options: Any) -> Sample:
    module = FirstOutput(model, options).eval()
    axes = ("batch_size", "sequence_length")[: 2 if x.ndim == 2 else 1]
    free = {axis: torch.export.Dim(title, min=1) for axis, title in enumerate(axes)}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, (x,), dynamo=True, dynamic_shapes=(free,), input_names=["x"], output_names=["y"], verbose=False
        )
        expected = module(x).numpy()
    assert program is not None
    return Sample(save(program.model_proto, folder / f"{name}.onnx"), {"x": x.numpy()}, {"y": expected})


def bert(folder: Path) -> Sample:
    sizes: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_hidden_layers=2, **sizes, **EAGER)
    return export(folder, "bert", transformers.BertModel(config), torch.randint(0, VOCABULARY, (2, 9)))


def gpt2(folder: Path) -> Sample:
    """Gemm everywhere, and a tied head by way of a transpose."""
    sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=VOCABULARY, **sizes, **tokens, **EAGER)
    x = torch.randint(0, VOCABULARY, (2, 9))
    return export(folder, "gpt2", transformers.GPT2LMHeadModel(config), x, use_cache=False)


def resnet(folder: Path) -> Sample:
    sizes: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 10}
    config = transformers.ResNetConfig(embedding_size=16, **sizes)
    return export(folder, "resnet", transformers.ResNetForImageClassification(config), torch.randn(2, 3, 32, 32))


def branches(folder: Path) -> Sample:
    """Weights inside and outside of the branches of If, as in merged decoders."""
    path = save(branching_model(), folder / "branches.onnx")
    feeds = {"x": numbers(3, 48, seed=9), "flag": np.array([True])}
    return Sample(path, feeds, run(path, feeds))


MODELS: dict[str, Callable[[Path], Sample]] = {"bert": bert, "gpt2": gpt2, "resnet": resnet, "branches": branches}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    return {name: make(folder) for name, make in MODELS.items()}


def operators(path: Path) -> Counter[str]:
    found: Counter[str] = Counter()

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            found[node.op_type] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    visit(attribute.g)

    visit(onnx.load(path).graph)
    return found


@pytest.mark.parametrize("dtype", LEVELS)
@pytest.mark.parametrize("name", MODELS)
def test_every_level_keeps_within_its_tolerance_in_both_runtimes(
    samples: dict[str, Sample], tmp_path: Path, name: str, dtype: str
) -> None:
    sample = samples[name]
    target = tmp_path / f"{name}_{dtype}.onnx"

    quantized = quantize(sample.path, target, dtype)

    assert dtype == "fp32" or quantized.nodes > 0
    # Of so small a graph much is names; what has weights shrinks all the same.
    assert dtype == "fp32" or target.stat().st_size < sample.path.stat().st_size
    onnx.checker.check_model(target)
    require_level(target, sample, dtype)


@pytest.mark.parametrize("dtype", LEVELS)
def test_levels_are_the_same_bytes_each_time_and_load_with_external_data(
    samples: dict[str, Sample], tmp_path: Path, dtype: str
) -> None:
    sample = samples["gpt2"]
    for name in ("a.onnx", "b.onnx"):
        quantize(sample.path, tmp_path / name, dtype)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    assert len(split(tmp_path / "a.onnx", 6000)) > 1

    require_level(tmp_path / "a.onnx", sample, dtype)
    for name, output in run(tmp_path / "b.onnx", sample.feeds).items():
        np.testing.assert_allclose(run(tmp_path / "a.onnx", sample.feeds)[name], output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "q8", "q4", "bnb4"])
def test_shapes_are_stated_so_that_the_runtime_fuses_sums_with_norms(
    samples: dict[str, Sample], tmp_path: Path, dtype: str
) -> None:
    quantize(samples["bert"].path, tmp_path / "m.onnx", dtype)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    options.log_severity_level = 4

    onnxruntime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])

    assert operators(tmp_path / "fused.onnx")["SkipLayerNormalization"] == 4


@pytest.mark.parametrize(
    ("name", "dtype", "expected"),
    [
        ("bert", "q8", {"MatMulInteger": 12, "GatherBlockQuantized": 2, "MatMul": 4, "Gemm": 0}),
        ("bert", "q4", {"MatMulNBits": 12, "GatherBlockQuantized": 2, "MatMul": 4, "Gemm": 0}),
        ("gpt2", "q4", {"MatMulNBits": 9, "GatherBlockQuantized": 2, "MatMul": 4, "Gemm": 0}),
        ("gpt2", "bnb4", {"MatMulBnb4": 9, "GatherBlockQuantized": 2, "MatMul": 4, "Gemm": 0}),
        ("gpt2", "int8", {"MatMulInteger": 9, "GatherBlockQuantized": 2, "MatMul": 4, "Gemm": 0}),
        ("resnet", "q8", {"ConvInteger": 8, "MatMulInteger": 1, "Conv": 0, "Gemm": 0}),
        ("resnet", "int8", {"ConvInteger": 8, "MatMulInteger": 1, "Conv": 0, "Gemm": 0}),
        ("resnet", "q4", {"MatMulNBits": 1, "Conv": 8, "Gemm": 0}),
        ("branches", "q8", {"MatMulInteger": 3, "MatMul": 0}),
        ("branches", "q4", {"MatMulNBits": 3, "MatMul": 0}),
        ("branches", "bnb4", {"MatMulBnb4": 3, "MatMul": 0}),
    ],
)
def test_every_product_with_a_constant_is_quantised(
    samples: dict[str, Sample], tmp_path: Path, name: str, dtype: str, expected: dict[str, int]
) -> None:
    quantized = quantize(samples[name].path, tmp_path / "m.onnx", dtype)

    found = operators(tmp_path / "m.onnx")
    assert {operator: found[operator] for operator in expected} == expected
    quantizing = ("MatMulInteger", "ConvInteger", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")
    assert quantized.nodes == sum(found[operator] for operator in quantizing)
    assert len(quantized.skipped) == (4 if (name, dtype) == ("resnet", "q4") else 0)


def test_without_embeddings_tables_stay_and_are_named(samples: dict[str, Sample], tmp_path: Path) -> None:
    quantized = quantize(samples["bert"].path, tmp_path / "m.onnx", "q4", embeddings=False)

    assert operators(tmp_path / "m.onnx")["Gather"] > 0
    (words,) = [entry for entry in quantized.skipped if "word_embeddings" in entry]
    assert words.endswith(f"[{VOCABULARY}, 64], {VOCABULARY * 64 * 4} bytes: it is used by Gather")
    require_level(tmp_path / "m.onnx", samples["bert"], "q4")


@pytest.mark.parametrize(("dtype", "bits"), [("q4", 4), ("q2", 2), ("q8", 8), ("int8", 8)])
def test_a_tied_head_is_stored_once(samples: dict[str, Sample], tmp_path: Path, dtype: str, bits: int) -> None:
    quantized = quantize(samples["gpt2"].path, tmp_path / "m.onnx", dtype)

    sizes = [len(tensor.raw_data) for tensor in tensors_of(onnx.load(tmp_path / "m.onnx"))]
    assert sizes.count(VOCABULARY * 64 * bits // 8) == 1
    assert any("stored more than once" in note for note in quantized.notes)


# --- the numbers, against ONNX Runtime's own quantisers


def matrices(rows: int = 70, columns: int = 40) -> st.SearchStrategy[NDArray[np.float32]]:
    """Random matrices with columns of zeros, of one sign, of tiny and of large numbers, and of halves."""

    def make(height: int, width: int, seed: int, scale: float) -> NDArray[np.float32]:
        matrix = numbers(height, width, seed=seed) * np.float32(scale)
        matrix[:, 0::7] = 0
        matrix[:, 1::7] = np.abs(matrix[:, 1::7])
        matrix[:, 2::7] *= np.float32(1e-30)
        matrix[:, 3::7] *= np.float32(1e30)
        # Halves between two steps, since the largest number gives steps of 1, 1/16 and 4.
        matrix[:, 4::7] = np.round(matrix[:, 4::7]) / 2
        matrix[:1, 4::7] = 8
        return matrix

    sizes = (st.integers(1, rows), st.integers(1, columns))
    return st.builds(make, *sizes, st.integers(0, 99), st.sampled_from([1.0, 1e-3, 50.0]))


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_8_bit_columns_are_those_of_onnx_runtime(weights: NDArray[np.float32]) -> None:
    kinds = [
        (Integers(signed=False), TensorProto.UINT8, False, False),
        (Integers(signed=True), TensorProto.INT8, True, True),
        (Integers(signed=True, highest=127), TensorProto.INT8, True, False),
    ]
    for integers, element_type, symmetric, reduced in kinds:
        quantized, scales, zero_points = quantize_columns(weights, integers)
        for column in range(weights.shape[1]):
            zero_point, scale, values = quantize_data(weights[:, column], element_type, symmetric, reduced)
            assert scales[column] == scale
            assert zero_points[column] == zero_point
            np.testing.assert_array_equal(quantized[:, column], values)


def product_model(weights: NDArray[np.float32]) -> onnx.ModelProto:
    rows, columns = weights.shape
    return model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        [value("x", ["n", rows])],
        [value("y", ["n", columns])],
        {"w": weights},
    )


def tensors(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from([2, 4, 8]))
def test_blocks_are_those_of_onnx_runtime(weights: NDArray[np.float32], bits: int) -> None:
    """All but the numbers between a row's end and the end of its last byte, which no one reads."""
    rows = weights.shape[0]
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=bits)
    with quiet():
        oracle = MatMulNBitsQuantizer(product_model(weights), algo_config=config)
        oracle.process()
    expected = tensors(oracle.model.model)

    packed, scales = quantize_rows(weights.T, bits, 32)

    np.testing.assert_array_equal(scales, expected["w_scales"].reshape(scales.shape))
    theirs = expected[f"w_Q{bits}"].reshape(packed.shape)
    np.testing.assert_array_equal(unpacked(packed, bits)[:, :rows], unpacked(theirs, bits)[:, :rows])


def unpacked(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    parts = [packed >> np.uint8(shift) & np.uint8((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(packed.shape[0], -1)


@settings(max_examples=40, deadline=None)
@given(matrices())
def test_nf4_is_that_of_onnx_runtime(weights: NDArray[np.float32]) -> None:
    with quiet():
        oracle = MatMulBnb4Quantizer(product_model(weights), MatMulBnb4Quantizer.NF4, 64)
        oracle.process()
    expected = tensors(oracle.model.model)

    packed, scales = quantize_nf4(weights.T, 64)

    np.testing.assert_array_equal(scales, expected["w_absmax"])
    np.testing.assert_array_equal(packed, expected["w_Bnb4"])


@pytest.mark.parametrize("size", [1e-45, 1e-39, 1e-37])
def test_numbers_at_the_end_of_float32_stay_next_to_zero(size: float) -> None:
    weights = np.sign(numbers(5, 64)) * np.float32(size)
    weights[0] = 0
    for bits in (2, 4, 8):
        packed, scales = quantize_rows(weights, bits, 32)
        found = (unpacked(packed, bits).astype(np.float32) - (1 << (bits - 1))) * np.repeat(scales, 32, axis=1)
        assert np.abs(found).max() < 3e-37
    packed, scales = quantize_nf4(weights, 64)
    assert scales.max() == np.float32(size)
    np.testing.assert_array_equal(packed[:32], ZERO << 4 | ZERO)


def test_nf4_at_its_bounds_is_that_of_onnx_runtime() -> None:
    around = [np.nextafter(BOUNDS, np.float32(-2)), BOUNDS, np.nextafter(BOUNDS, np.float32(2))]
    weights = np.zeros((64, 1), np.float32)
    weights[:46, 0] = [1, *np.concatenate(around)]
    with quiet():
        oracle = MatMulBnb4Quantizer(product_model(weights), MatMulBnb4Quantizer.NF4, 64)
        oracle.process()

    packed, _ = quantize_nf4(weights.T, 64)

    np.testing.assert_array_equal(packed, tensors(oracle.model.model)["w_Bnb4"])


def test_nf4_values_are_nearest_neighbours() -> None:
    assert VALUES[ZERO] == 0
    np.testing.assert_allclose(BOUNDS, (VALUES[1:] + VALUES[:-1]) / 2, atol=2e-7)


def test_tables_are_those_of_onnx_runtime_within_a_step(tmp_path: Path) -> None:
    """Its quantiser for tables divides and rounds halves to even; ours multiplies by the reciprocal, as the one for
    products does, so that both have the same bytes."""
    table = numbers(60, 64)
    model = model_of(
        [helper.make_node("Gather", ["w", "x"], ["y"], name="lookup")],
        [value("x", ["n"], TensorProto.INT64)],
        [value("y", ["n", 64])],
        {"w": table},
        opset=21,
    )
    config = DefaultWeightOnlyQuantConfig(
        block_size=32,
        is_symmetric=True,
        bits=4,
        op_types_to_quantize=("Gather",),
        quant_axes=(("Gather", 1),),
    )
    quantize(save(model, tmp_path / "m.onnx"), tmp_path / "ours.onnx", "q4")
    with quiet():
        oracle = MatMulNBitsQuantizer(model, algo_config=config)
        oracle.process()
    save(oracle.model.model, tmp_path / "theirs.onnx")
    feeds = {"x": np.arange(60)}

    ours, theirs = run(tmp_path / "ours.onnx", feeds)["y"], run(tmp_path / "theirs.onnx", feeds)["y"]

    step = np.repeat(np.abs(quantize_rows(table, 4, 32)[1]), 32, axis=1)
    assert (np.abs(ours - theirs) <= step * 1.0001).all()
    assert (ours != theirs).mean() < 0.01


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32), max_size=50))
def test_half_precision_is_that_of_onnx_runtime(values: list[float]) -> None:
    array = np.array(values, np.float32)
    with np.errstate(invalid="ignore"):
        expected = convert_np_to_float16(array)

    half, too_large, too_small = to_half(array)

    np.testing.assert_array_equal(half.view(np.uint16), expected.view(np.uint16))
    assert too_large == sum(65504 < abs(x) < np.inf for x in array)
    assert too_small == sum(0 < abs(x) < np.float32(5.96e-8) for x in array)


@pytest.mark.parametrize("name", ["bert", "branches"])
def test_8_bits_have_the_weights_and_the_answers_of_onnx_runtime(
    samples: dict[str, Sample], tmp_path: Path, name: str
) -> None:
    """Tables apart, for which its quantiser has one scale only."""
    sample = samples[name]
    with quiet():
        quantize_dynamic(
            sample.path,
            tmp_path / "theirs.onnx",
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QUInt8,
            per_channel=True,
            reduce_range=False,
            extra_options={"MatMulConstBOnly": True, "EnableSubgraph": True},
        )
    quantize(sample.path, tmp_path / "ours.onnx", "q8", embeddings=False)

    ours, theirs = (
        {tensor.raw_data for tensor in tensors_of(onnx.load(tmp_path / f"{which}.onnx")) if len(tensor.raw_data) > 500}
        for which in ("ours", "theirs")
    )

    assert ours >= {data for data in theirs if len(data) % 32 == 0} - {
        tensor.raw_data for tensor in tensors_of(onnx.load(sample.path))
    }
    feeds = sample.feeds
    for key, output in run(tmp_path / "theirs.onnx", feeds).items():
        assert relative_error(run(tmp_path / "ours.onnx", feeds)[key], output) < (0.02 if name == "bert" else 1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet"])
def test_float16_is_as_near_as_onnx_runtimes_own(samples: dict[str, Sample], tmp_path: Path, name: str) -> None:
    sample = samples[name]
    with quiet():
        model = convert_float_to_float16(onnx.load(sample.path), keep_io_types=True)
    save(model, tmp_path / "theirs.onnx")
    quantize(sample.path, tmp_path / "ours.onnx", "fp16")

    ours, theirs = (run(tmp_path / f"{which}.onnx", sample.feeds)["y"] for which in ("ours", "theirs"))

    expected = sample.expected["y"]
    assert relative_error(ours, expected) < 1.5 * relative_error(theirs, expected) + 1e-4


def test_filters_with_a_scale_per_channel_are_nearer_than_with_one() -> None:
    """ONNX Runtime's dynamic quantiser has one scale for all filters."""
    weights = numbers(16, 8, 3, 3) * np.geomspace(0.01, 1, 16, dtype=np.float32)[:, None, None, None]

    quantized, scales = quantize_filters(weights)
    zero_point, scale, one = quantize_data(weights.ravel(), TensorProto.UINT8, False)

    ours = (quantized.astype(np.float32) - 128) * scales[..., np.newaxis]
    theirs = ((one.astype(np.float32) - zero_point) * scale).reshape(weights.shape)
    channel = (1, 2, 3)
    assert (np.abs(ours - weights).max(axis=channel) <= np.abs(weights).max(axis=channel) / 253).all()
    assert np.abs(ours - weights)[:8].mean() < np.abs(theirs - weights)[:8].mean() / 5


# --- shapes of graphs


@pytest.mark.parametrize("dtype", ["q8", "q4", "bnb4"])
@pytest.mark.parametrize(
    ("attributes", "bias"),
    [
        ({}, (24,)),
        ({"transB": 1}, (24,)),
        ({"transA": 1, "transB": 1}, None),
        ({"alpha": 0.5, "beta": 2.0}, (1, 24)),
        ({"transB": 1, "beta": -1.0}, ()),
        ({"alpha": 3.0}, (5, 24)),
    ],
    ids=str,
)
def test_every_form_of_gemm_is_quantised(
    tmp_path: Path, dtype: str, attributes: dict[str, Any], bias: tuple[int, ...] | None
) -> None:
    weights = numbers(24, 64) if "transB" in attributes else numbers(64, 24)
    x = numbers(5, 64, seed=1)
    initializers = {"w": weights} | ({} if bias is None else {"c": 4 * numbers(*bias, seed=2)})
    model = model_of(
        [helper.make_node("Gemm", ["x", "w", *(["c"] if bias is not None else [])], ["y"], **attributes)],
        [value("x", [64, 5] if "transA" in attributes else [5, 64])],
        [value("y", [5, 24])],
        initializers,
    )
    path = save(model, tmp_path / "m.onnx")
    feeds = {"x": np.ascontiguousarray(x.T) if "transA" in attributes else x}
    sample = Sample(path, feeds, run(path, feeds))

    quantized = quantize(path, tmp_path / "q.onnx", dtype)

    assert (quantized.nodes, quantized.skipped) == (1, ())
    require_level(tmp_path / "q.onnx", sample, dtype)


def test_weights_that_stay_are_named_with_size_and_reason(tmp_path: Path) -> None:
    experts, left, odd = numbers(4, 32, 16), numbers(16, 32), numbers(40, 33)
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "experts"], ["a"]),
            helper.make_node("MatMul", ["x", "w"], ["b"]),
            helper.make_node("MatMul", ["left", "right"], ["c"]),
            helper.make_node("Gather", ["odd", "ids"], ["d"]),
            helper.make_node("ReduceSum", ["a"], ["a_sum"], keepdims=0),
            helper.make_node("ReduceSum", ["c"], ["c_sum"], keepdims=0),
            helper.make_node("ReduceSum", ["d"], ["d_sum"], keepdims=0),
            helper.make_node("Sum", ["a_sum", "b", "c_sum", "d_sum"], ["y"]),
        ],
        [value("x", [4, 3, 32]), value("right", [32, 5]), value("ids", [2], TensorProto.INT64)],
        [value("y", [4, 3, 16])],
        {"experts": experts, "w": numbers(32, 16, seed=3), "left": left, "odd": odd},
    )
    path = save(model, tmp_path / "m.onnx")

    quantized = quantize(path, tmp_path / "q.onnx", "q4")

    assert quantized.nodes == 1
    assert quantized.skipped == (
        "experts [4, 32, 16], 8192 bytes: a product of 3 dimensions has no 4-bit form",
        "left [16, 32], 2048 bytes: a product with the constant on the left has no 4-bit form",
        "odd [40, 33], 5280 bytes: rows of 33 numbers fill no whole bytes at 4 bits",
    )


@pytest.mark.parametrize("dtype", [dtype for dtype in LEVELS if dtype not in ("fp32", "fp16")])
def test_nothing_to_quantise_is_an_error(tmp_path: Path, dtype: str) -> None:
    model = model_of([helper.make_node("Add", ["x", "x"], ["y"])], [value("x", [4])], [value("y", [4])], {})
    path = save(model, tmp_path / "m.onnx")

    with pytest.raises(ConversionError, match=f"Quantising to {dtype} changed nothing"):
        quantize(path, tmp_path / "q.onnx", dtype)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_unknown_levels_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="'q1' is no level; possible: fp32, fp16, q8, int8, uint8, q4"):
        quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", "q1")


def test_equal_tensors_are_stored_once_also_in_branches_and_as_transposes(tmp_path: Path) -> None:
    same = numbers(32, 32)
    then = branch([helper.make_node("MatMul", ["x", "inner"], ["p"])], value("p", ["n", 32]), {"inner": same})
    other = branch([helper.make_node("MatMul", ["x", "own"], ["q"])], value("q", ["n", 32]), {"own": same.T.copy()})
    model = model_of(
        [
            helper.make_node("MatMul", ["x", "first"], ["a"]),
            helper.make_node("MatMul", ["a", "second"], ["b"]),
            helper.make_node("MatMul", ["b", "turned"], ["c"]),
            helper.make_node("Gather", ["flat", "ids"], ["d"]),
            helper.make_node("If", ["flag"], ["e"], then_branch=then, else_branch=other),
            helper.make_node("ReduceSum", ["d"], ["f"], keepdims=0),
            helper.make_node("Sum", ["c", "e", "f"], ["y"]),
        ],
        [value("x", ["n", 32]), value("ids", [2], TensorProto.INT64), value("flag", [1], TensorProto.BOOL)],
        [value("y", ["n", 32])],
        {"first": same, "second": same, "turned": same.T.copy(), "flat": same.reshape(64, 16)},
    )
    path = save(model, tmp_path / "m.onnx")

    quantized = quantize(path, tmp_path / "once.onnx", "fp32")

    assert quantized.nodes == 5
    sizes = [len(tensor.raw_data) for tensor in tensors_of(onnx.load(tmp_path / "once.onnx"))]
    assert sizes.count(4096) == 1
    for flag in (True, False):
        feeds = {"x": numbers(2, 32, seed=5), "ids": np.array([1, 60]), "flag": np.array([flag])}
        expected = run(path, feeds)["y"]
        for found in (run(tmp_path / "once.onnx", feeds), run_in_web_runtime(tmp_path / "once.onnx", feeds)):
            np.testing.assert_allclose(found["y"], expected, rtol=1e-4, atol=1e-4)


def loop_model() -> onnx.ModelProto:
    """`for _ in range(n): x = tanh(x @ w + outer)`, with a scan output and a Cast inside."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["carried", "w"], ["product"]),
            helper.make_node("Cast", ["step"], ["step_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["product", "outer"], ["sum"]),
            helper.make_node("Add", ["sum", "step_float"], ["shifted"]),
            helper.make_node("Tanh", ["shifted"], ["next"]),
            helper.make_node("ReduceSum", ["next"], ["scanned"], keepdims=0),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [value("step", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("carried", ["n", 32])],
        [value("go_on", [], TensorProto.BOOL), value("next", ["n", 32]), value("scanned", [])],
        [numpy_helper.from_array(numbers(32, 32) / 6, "w")],
    )
    return model_of(
        [helper.make_node("Loop", ["times", "", "x"], ["y", "sums"], body=body)],
        [value("x", ["n", 32]), value("times", [], TensorProto.INT64)],
        [value("y", ["n", 32]), value("sums", ["times"])],
        {"outer": numbers(32, seed=1)},
    )


@pytest.mark.parametrize("dtype", ["fp16", "q4f16", "q8"])
def test_loops_survive(tmp_path: Path, dtype: str) -> None:
    path = save(loop_model(), tmp_path / "m.onnx")
    feeds = {"x": numbers(3, 32, seed=2), "times": np.array(3)}

    quantize(path, tmp_path / "q.onnx", dtype)

    require_level(tmp_path / "q.onnx", Sample(path, feeds, run(path, feeds)), dtype)


Nodes = Sequence[onnx.NodeProto]


def half_case(
    nodes: Nodes, feeds: Arrays, initializers: Arrays, outputs: Sequence[onnx.ValueInfoProto] | None = None
) -> tuple[onnx.ModelProto, Arrays]:
    kinds = {array.dtype: helper.np_dtype_to_tensor_dtype(array.dtype) for array in feeds.values()}
    inputs = [value(name, array.shape, kinds[array.dtype]) for name, array in feeds.items()]
    return model_of(nodes, inputs, outputs or [value("y", None)], initializers), feeds


HALF_CASES = {
    "casts to and fro": half_case(
        [
            helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["f", "x"], ["m"]),
            helper.make_node("Cast", ["m"], ["d"], to=TensorProto.DOUBLE),
            helper.make_node("Cast", ["d"], ["e"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["e", "w"], ["y"]),
        ],
        {"ids": np.arange(6).reshape(2, 3), "x": numbers(2, 3)},
        {"w": numbers(3, 4)},
    ),
    "an operator that has no float16": half_case(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Range", ["start", "limit", "step"], ["r"]),
            helper.make_node("Add", ["m", "r"], ["y"]),
        ],
        {"x": numbers(2, 3)},
        {
            "w": numbers(3, 4),
            "start": np.array(0, np.float32),
            "limit": np.array(4, np.float32),
            "step": np.array(1, np.float32),
        },
    ),
    "scales of Resize": half_case(
        [helper.make_node("Resize", ["x", "", "s"], ["r"], mode="linear"), helper.make_node("Mul", ["r", "c"], ["y"])],
        {"x": numbers(1, 1, 4, 4)},
        {"s": np.array([1, 1, 2, 2], np.float32), "c": np.array([3], np.float32)},
    ),
    "ConstantOfShape, with and without value": half_case(
        [
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("ConstantOfShape", ["s"], ["zeros"]),
            helper.make_node(
                "ConstantOfShape", ["s"], ["twos"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [2.0])
            ),
            helper.make_node("Mul", ["x", "twos"], ["m"]),
            helper.make_node("Add", ["m", "zeros"], ["y"]),
        ],
        {"x": numbers(2, 3)},
        {},
    ),
    "comparison, choice and largest": half_case(
        [
            helper.make_node("Greater", ["x", "c"], ["g"]),
            helper.make_node("Where", ["g", "x", "c"], ["w"]),
            helper.make_node("Max", ["w", "k"], ["m"]),
            helper.make_node("TopK", ["m", "two"], ["y", "i"]),
        ],
        {"x": numbers(2, 5)},
        {"c": np.array([0.25], np.float32), "k": np.array([-0.5], np.float32), "two": np.array([2])},
        [value("y", None), value("i", None, TensorProto.INT64)],
    ),
    "a norm whose squares and epsilon leave the range": half_case(
        [
            helper.make_node("Pow", ["x", "two"], ["p"]),
            helper.make_node("ReduceMean", ["p", "last"], ["mean"]),
            helper.make_node("Add", ["mean", "eps"], ["a"]),
            helper.make_node("Sqrt", ["a"], ["s"]),
            helper.make_node("Div", ["x", "s"], ["d"]),
            helper.make_node("Mul", ["d", "g"], ["y"]),
        ],
        {"x": np.array([[3000, -2000, 1000], [1e-5, 2e-5, -3e-5]], np.float32)},
        {"two": np.array(2, np.float32), "last": np.array([-1]), "eps": np.array(1e-12, np.float32), "g": numbers(3)},
    ),
    "angles of positions above 2048": half_case(
        [
            helper.make_node("Cast", ["ids"], ["p"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["p", "frequencies"], ["angle"]),
            helper.make_node("Concat", ["angle", "angle"], ["both"], axis=1),
            helper.make_node("Cos", ["both"], ["c"]),
            helper.make_node("MatMul", ["c", "w"], ["y"]),
        ],
        {"ids": np.array([[5], [2049], [4095]])},
        {"frequencies": np.array([[1, 0.1, 0.01]], np.float32), "w": numbers(6, 4)},
    ),
    "buckets at their borders": half_case(
        [
            helper.make_node("Cast", ["ids"], ["p"], to=TensorProto.FLOAT),
            helper.make_node("Log", ["p"], ["l"]),
            helper.make_node("Mul", ["l", "c"], ["m"]),
            helper.make_node("Cast", ["m"], ["b"], to=TensorProto.INT64),
            helper.make_node("Gather", ["w", "b"], ["y"]),
        ],
        {"ids": np.arange(1, 3000)},
        {"c": np.array(20, np.float32), "w": numbers(200, 3)},
    ),
    "outputs that are used, passed through or constant": half_case(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Tanh", ["a"], ["y"]),
            helper.make_node("Identity", ["x"], ["same"]),
            helper.make_node("Add", ["a", "table"], ["b"]),
            helper.make_node("Relu", ["b"], ["last"]),
        ],
        {"x": numbers(2, 3)},
        {"w": numbers(3, 4), "table": numbers(4)},
        [value(name, None) for name in ("a", "y", "same", "last")],
    ),
}


@pytest.mark.parametrize("title", HALF_CASES)
def test_float16_survives(tmp_path: Path, title: str) -> None:
    model, feeds = HALF_CASES[title]
    path = save(model, tmp_path / "m.onnx")
    expected = run(path, feeds)

    quantized = quantize(path, tmp_path / "h.onnx", "fp16")

    assert quantized.nodes > 0
    # ONNX Runtime leaves out casts between operators that it runs in float32; the reference rounds at every one.
    evaluator = ReferenceEvaluator(str(tmp_path / "h.onnx"))
    reference = dict(zip(evaluator.output_names, evaluator.run(None, dict(feeds)), strict=True))
    for found in (run(tmp_path / "h.onnx", feeds), run_in_web_runtime(tmp_path / "h.onnx", feeds), reference):
        for name, output in expected.items():
            assert found[name].dtype == output.dtype
            np.testing.assert_allclose(found[name], output, rtol=5e-3, atol=5e-3)


def test_numbers_beyond_float16_are_clamped_and_counted(tmp_path: Path) -> None:
    mask = np.array([0, -3.4e38, -np.inf, 1e-9, 70000, np.inf], np.float32)
    model, _ = half_case([helper.make_node("Add", ["x", "mask"], ["y"])], {"x": numbers(6)}, {"mask": mask})

    quantized = quantize(save(model, tmp_path / "m.onnx"), tmp_path / "h.onnx", "fp16")

    assert quantized.notes == (
        "numbers beyond ±65504 that became ±65504: 2 (in mask)",
        "numbers below 6e-8 that became ±6e-8: 1",
    )
    (stored,) = tensors(onnx.load(tmp_path / "h.onnx")).values()
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, np.array([0, -65504, -np.inf, 5.96e-8, 65504, np.inf], np.float16))


def test_q8_filters_are_unsigned_with_one_zero_point(samples: dict[str, Sample], tmp_path: Path) -> None:
    """Signed convolutions are ten times slower, and the runtime takes a single zero point."""
    for dtype in ("q8", "int8", "uint8"):
        quantize(samples["resnet"].path, tmp_path / "m.onnx", dtype)
        model = onnx.load(tmp_path / "m.onnx")
        weights = tensors(model)
        convolutions = [node for node in model.graph.node if node.op_type == "ConvInteger"]
        assert len(convolutions) == 8
        for node in convolutions:
            assert weights[node.input[1]].dtype == np.uint8
            assert weights[node.input[3]] == 128
