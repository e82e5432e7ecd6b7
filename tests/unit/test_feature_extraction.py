"""Feature extraction: with a tiny real model, against formulas written out with loops."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto

from pywebml import Engine, create_engine
from pywebml.errors import InferenceError, InputError, PywebmlError, TokenizerError, UnsupportedModelError
from pywebml.platform.native_sessions import NativeSession
from pywebml.tasks.feature_extraction import POOLINGS
from tests.faults.server import FaultServer
from tests.tiny_model import INPUTS, TinyModel, expected_hidden, table

pytestmark = pytest.mark.usefixtures("surroundings")

Floats: TypeAlias = NDArray[Any]
Start: TypeAlias = Callable[[TinyModel], Awaitable[Engine]]

TEXTS = ["cat", "the cat sat on the mat", "", "the mats"]
ROWS = [
    ["[CLS]", "cat", "[SEP]"],
    ["[CLS]", "the", "cat", "sat", "on", "the", "mat", "[SEP]"],
    ["[CLS]", "[SEP]"],
    ["[CLS]", "the", "mat", "##s", "[SEP]"],
]


@pytest.fixture
def start(server: FaultServer) -> Start:
    """Publish a model and make an engine of it."""

    async def start(model: TinyModel) -> Engine:
        model.write(server.root / "hub" / "tests" / "tiny" / "v1.0.0")
        return await create_engine(
            task_name="feature-extraction", model_id="tests/tiny", model_revision="v1.0.0", dtype="fp32"
        )

    return start


def padded(rows: list[list[str]], side: str = "right") -> list[list[str]]:
    width = max(len(row) for row in rows)
    filling = [["[PAD]"] * (width - len(row)) for row in rows]
    return [row + pads if side == "right" else pads + row for row, pads in zip(rows, filling, strict=True)]


def pooled(name: str, hidden: Floats, mask: NDArray[np.int64]) -> Floats:
    """One row after another, one token after another."""
    results = []
    for row, flags in zip(hidden, mask, strict=True):
        tokens = [vector for vector, flag in zip(row, flags, strict=True) if flag]
        if name == "mean":
            results.append(sum(tokens[1:], tokens[0]) / len(tokens))
        else:
            results.append(tokens[0 if name in {"cls", "first_token"} else -1])
    return np.stack(results)


# Pooling


@pytest.mark.parametrize("name", POOLINGS)
@given(data=st.data())
def test_pooling_is_that_of_the_formula_wherever_padding_is(name: str, data: st.DataObject) -> None:
    batch, length, hidden = (data.draw(st.integers(1, 5)) for _ in range(3))
    vectors = data.draw(arrays.arrays(np.float32, (batch, length, hidden), elements=st.floats(-100, 100, width=32)))
    starts = [data.draw(st.integers(0, length - 1)) for _ in range(batch)]
    ends = [data.draw(st.integers(start + 1, length)) for start in starts]
    mask = np.array(
        [[int(first <= place < end) for place in range(length)] for first, end in zip(starts, ends, strict=True)]
    )
    result = POOLINGS[name](vectors, mask)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, pooled(name, vectors, mask), atol=1e-3)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", POOLINGS)
async def test_pooling_passes_over_padding_on_either_side(start: Start, name: str, side: str) -> None:
    engine = await start(TinyModel(tokenizer_config={"padding_side": side}))
    expected = np.concatenate([pooled(name, expected_hidden([row]), np.ones((1, len(row)), np.int64)) for row in ROWS])
    result = await engine.run(TEXTS, pooling=name)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
async def test_without_pooling_every_token_has_its_vector(start: Start, side: str) -> None:
    engine = await start(TinyModel(tokenizer_config={"padding_side": side}))
    result = await engine.run(TEXTS)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected_hidden(padded(ROWS, side)), atol=1e-6)


async def test_one_text_counts_as_a_list_of_one(start: Start) -> None:
    engine = await start(TinyModel())
    np.testing.assert_array_equal(await engine.run("the cat"), await engine.run(["the cat"]))
    np.testing.assert_array_equal(await engine.run(("the cat",)), await engine.run(["the cat"]))
    assert (await engine.run("cat", pooling="mean")).shape == (1, 8)


# Batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 100])
async def test_size_of_batches_changes_nothing(start: Start, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    engine = await start(TinyModel())
    whole = await engine.run(TEXTS, pooling="mean", normalize=True)
    batches: list[int] = []
    original = NativeSession.run

    async def run(self: NativeSession, feeds: Any, **options: Any) -> Any:
        batches.append(len(feeds["input_ids"]))
        return await original(self, feeds, **options)

    monkeypatch.setattr(NativeSession, "run", run)
    parts = await engine.run(TEXTS, pooling="mean", normalize=True, batch_size=batch_size)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert sum(batches) == len(TEXTS)
    assert len(batches) == math.ceil(len(TEXTS) / batch_size)
    assert max(batches) <= batch_size


async def test_without_pooling_all_texts_go_together(start: Start) -> None:
    engine = await start(TinyModel())
    np.testing.assert_array_equal(await engine.run(TEXTS, batch_size=1), await engine.run(TEXTS))


# Length


@pytest.mark.parametrize(
    ("positions", "model_max_length", "expected"),
    [(6, None, 6), (6, 512, 6), (512, 5, 5), (None, 4, 4), ("garbage", 7, 7), (None, None, 22), (-1, None, 22)],
)
async def test_long_texts_are_cut_to_what_the_model_takes(
    start: Start, positions: Any, model_max_length: int | None, expected: int
) -> None:
    tokenizer_config = {} if model_max_length is None else {"model_max_length": model_max_length}
    engine = await start(TinyModel(config={"max_position_embeddings": positions}, tokenizer_config=tokenizer_config))
    result = await engine.run("cat " * 20)
    row = ["[CLS]", *["cat"] * (expected - 2), "[SEP]"]
    np.testing.assert_allclose(result, expected_hidden([row]), atol=1e-6)


# Normalising


@pytest.mark.parametrize("pooling", ["none", "mean"])
async def test_normalised_vectors_have_length_1_and_their_direction(start: Start, pooling: str) -> None:
    engine = await start(TinyModel())
    plain = await engine.run(TEXTS, pooling=pooling)
    result = await engine.run(TEXTS, pooling=pooling, normalize=True)
    assert result.dtype == np.float32
    lengths = np.sqrt((plain.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(result, plain / lengths, atol=1e-6)


async def test_vector_without_length_stays_zero(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start(TinyModel())
    original = NativeSession.run

    async def run(self: NativeSession, *args: Any, **options: Any) -> Any:
        return {name: np.zeros_like(value) for name, value in (await original(self, *args, **options)).items()}

    monkeypatch.setattr(NativeSession, "run", run)
    np.testing.assert_array_equal(await engine.run("cat", pooling="mean", normalize=True), np.zeros((1, 8)))


# Bits


def sentence_transformers_bits(vectors: Floats, precision: str) -> NDArray[Any]:
    """`quantize_embeddings` of sentence-transformers: a bit per number above zero, eight to a byte."""
    packed = np.packbits(vectors > 0).reshape(vectors.shape[0], -1)
    return packed if precision == "ubinary" else (packed - 128).astype(np.int8)


@pytest.mark.parametrize("hidden", [8, 24])
@pytest.mark.parametrize(("precision", "dtype"), [("binary", np.int8), ("ubinary", np.uint8)])
@pytest.mark.parametrize("normalize", [False, True])
async def test_bits_are_those_of_sentence_transformers(
    start: Start, hidden: int, precision: str, dtype: type, normalize: bool
) -> None:
    engine = await start(TinyModel(hidden=hidden))
    vectors = await engine.run(TEXTS, pooling="mean")
    result = await engine.run(TEXTS, pooling="mean", normalize=normalize, quantize=True, precision=precision)
    assert (result.dtype, result.shape) == (dtype, (len(TEXTS), hidden // 8))
    np.testing.assert_array_equal(result, sentence_transformers_bits(vectors, precision))
    by_hand = int("".join("1" if number > 0 else "0" for number in vectors[0, :8]), 2)
    assert int(result[0, 0]) == (by_hand if precision == "ubinary" else by_hand - 128)


async def test_binary_is_the_default_precision(start: Start) -> None:
    engine = await start(TinyModel())
    assert (await engine.run("cat", pooling="mean", quantize=True)).dtype == np.int8


async def test_vectors_that_do_not_fill_bytes_cannot_be_bits(start: Start) -> None:
    engine = await start(TinyModel(hidden=12))
    with pytest.raises(InputError, match="12") as caught:
        await engine.run("cat", pooling="mean", quantize=True)
    assert caught.value.details["hidden"] == 12
    assert (await engine.run("cat", pooling="mean")).shape == (1, 12)


# Models


@pytest.mark.parametrize("inputs", [("input_ids",), ("input_ids", "attention_mask"), INPUTS])
async def test_model_gets_only_the_inputs_that_it_declares(start: Start, inputs: tuple[str, ...]) -> None:
    engine = await start(TinyModel(inputs=inputs))
    result = await engine.run("cat")
    expected = table()[[2, 5, 3]] + (0.5 if "attention_mask" in inputs else 0)
    np.testing.assert_allclose(result[0], expected, atol=1e-6)


async def test_model_that_wants_more_inputs_is_refused_by_their_names(start: Start) -> None:
    engine = await start(TinyModel(inputs=("input_ids", "pixel_values", "speaker")))
    with pytest.raises(UnsupportedModelError, match="pixel_values, speaker"):
        await engine.run("cat")


@pytest.mark.parametrize("output", ["last_hidden_state", "logits", "token_embeddings"])
async def test_token_vectors_are_found_under_every_usual_name(start: Start, output: str) -> None:
    engine = await start(TinyModel(output=output))
    assert (await engine.run("cat")).shape == (1, 3, 8)


async def test_model_without_token_vectors_is_refused_by_its_outputs(start: Start) -> None:
    with pytest.raises(UnsupportedModelError, match=r"tests/tiny has the outputs scores; .*last_hidden_state"):
        await start(TinyModel(output="scores"))


@pytest.mark.parametrize("pooling", ["none", "mean"])
async def test_output_of_another_rank_is_refused(start: Start, pooling: str) -> None:
    engine = await start(TinyModel(rank=2))
    with pytest.raises(InferenceError, match=r"shape \(1, 8\)"):
        await engine.run("cat", pooling=pooling)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("pooling", ["none", "mean", "cls"])
async def test_vectors_are_float32_whatever_the_model_gives(start: Start, kind: int, pooling: str) -> None:
    engine = await start(TinyModel(output_type=kind))
    result = await engine.run("the cat", pooling=pooling)
    hidden = expected_hidden([["[CLS]", "the", "cat", "[SEP]"]])
    expected = hidden if pooling == "none" else pooled(pooling, hidden, np.ones((1, 4), np.int64))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-3)


async def test_output_that_is_no_vector_is_refused(start: Start) -> None:
    engine = await start(TinyModel(output_type=TensorProto.INT64))
    with pytest.raises(InferenceError, match="int64"):
        await engine.run("cat")


# Input


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "empty"),
        ((), "empty"),
        (5, "not int"),
        (None, "not NoneType"),
        (b"cat", "not bytes"),
        ({"text": "cat"}, "not dict"),
        (["cat", 5], "a list with int in it"),
        ([["cat"]], "a list with list in it"),
    ],
)
async def test_input_that_is_no_text_is_refused_by_what_it_is(start: Start, texts: Any, words: str) -> None:
    engine = await start(TinyModel())
    with pytest.raises(InputError, match=words):
        await engine.run(texts, pooling="mean")


async def test_half_of_a_surrogate_pair_is_refused(start: Start) -> None:
    engine = await start(TinyModel())
    with pytest.raises(TokenizerError, match="surrogate"):
        await engine.run("cat \ud800")


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "max"},
        {"pooling": None},
        {"pooling": ["mean"]},
        {"quantize": True},
        {"pooling": "mean", "quantize": True, "precision": "int4"},
        {"pooling": "mean", "batch_size": 0},
        {"pooling": "mean", "batch_size": -1},
        {"pooling": "mean", "batch_size": 2.0},
        {"pooling": "mean", "batch_size": None},
        {"pooling": "mean", "batch_size": True},
    ],
)
async def test_options_that_make_no_sense_are_refused(start: Start, options: dict[str, Any]) -> None:
    engine = await start(TinyModel())
    with pytest.raises(InputError):
        await engine.run("cat", **options)


async def test_tokenizer_that_is_none_is_refused(start: Start, server: FaultServer) -> None:
    TinyModel().write(server.root / "hub" / "tests" / "tiny" / "v1.0.0")
    (server.root / "hub" / "tests" / "tiny" / "v1.0.0" / "manifest.json").unlink()
    server.write("hub/tests/tiny/v1.0.0/tokenizer.json", '{"model": {}}')
    with pytest.raises(PywebmlError) as caught:
        await create_engine(task_name="feature-extraction", model_id="tests/tiny", model_revision="v1.0.0")
    assert isinstance(caught.value, TokenizerError)
