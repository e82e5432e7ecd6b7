"""Exported encoder-decoders against PyTorch: every architecture small, with fixed random weights.

Those of `ALWAYS` run always. The others are exported in the same way and take minutes in all: they run when the
environment has PYWEBML_EVERY_ARCHITECTURE=1.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import GraphProto, TensorProto, helper, numpy_helper

from pywebml.errors import ConversionError
from pywebml.prepare.exporting import seq2seq, torch_export
from pywebml.prepare.exporting.merge import merge_decoder
from pywebml.prepare.exporting.seq2seq import DECODER, ENCODER
from tests.parity.tiny_models import relative_error
from tests.parity.tiny_signal_models import (
    EVERY,
    SEQ2SEQ,
    TOLERANCE,
    Written,
    choices,
    js_tensor,
    transformers_js,
    write_model,
)

NEW_TOKENS = 6
ALWAYS = (
    ("t5", "text2text-generation"),
    ("bart", "text2text-generation"),
    ("marian", "text2text-generation"),
    ("whisper", "automatic-speech-recognition"),
    ("vision-encoder-decoder", "image-to-text"),
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=choices(SEQ2SEQ, ALWAYS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_model(tmp_path_factory.mktemp("seq2seq"), SEQ2SEQ, *request.param)


def test_every_architecture_has_a_tiny_model() -> None:
    assert {name.partition("/")[0] for name in SEQ2SEQ} == set(seq2seq.ROWS)


def test_parts_answer_like_pytorch_at_every_step(written: Written) -> None:
    for part in written.exported.parts:
        cases = part.cases()
        assert len({next(iter(case.feeds.values())).shape for case in cases}) >= 2
        for case in cases:
            assert set(case.feeds) == set(part.inputs)
            assert relative_error(written.sessions[part.name], case) <= TOLERANCE, f"{part.name}, {case.title}"


def test_files_have_the_inputs_and_outputs_of_their_parts(written: Written) -> None:
    for part in written.exported.parts:
        session = written.sessions[part.name]
        assert tuple(value.name for value in session.get_inputs()) == part.inputs
        assert tuple(value.name for value in session.get_outputs()) == part.outputs


def greedy(written: Written, inputs: dict[str, NDArray[Any]], start: int) -> NDArray[np.int64]:
    """As Transformers.js generates: the first step makes the caches, and those of the encoder stay as they are.

    No token comes twice: random models like to repeat themselves, whatever is in the caches.
    """
    hidden = written.run(ENCODER, inputs)["last_hidden_state"]
    tokens = np.full((len(hidden), 1), start)
    found = [tokens]
    past = {
        value.name: np.zeros([{"batch_size": len(hidden)}.get(d, 0) if isinstance(d, str) else d for d in value.shape])
        for value in written.sessions[DECODER].get_inputs()
        if value.name.startswith("past_key_values")
    }
    past = {name: array.astype(np.float32) for name, array in past.items()}
    for step in range(NEW_TOKENS):
        feeds: dict[str, Any] = {"input_ids": tokens, "encoder_hidden_states": hidden, **past}
        if "encoder_attention_mask" in written.part(DECODER).inputs:
            feeds["encoder_attention_mask"] = inputs["attention_mask"]
        if "use_cache_branch" in written.part(DECODER).inputs:
            feeds["use_cache_branch"] = np.array([step > 0])
        answers = written.run(DECODER, feeds)
        past |= {
            name.replace("present", "past_key_values"): array
            for name, array in answers.items()
            if name != "logits" and (step == 0 or ".encoder." not in name)
        }
        scores = answers["logits"][:, -1]
        np.put_along_axis(scores, np.concatenate(found, 1), -np.inf, 1)
        tokens = scores.argmax(-1)[:, np.newaxis]
        found.append(tokens)
    return np.concatenate(found, 1)


def expected_tokens(written: Written, inputs: dict[str, NDArray[Any]], start: int) -> NDArray[np.int64]:
    with torch.no_grad():
        generated: torch.Tensor = written.model().generate(
            **{name: torch.from_numpy(array) for name, array in inputs.items()},
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            num_beams=1,
            no_repeat_ngram_size=1,
            eos_token_id=None,
            decoder_start_token_id=start,
        )
    tokens: NDArray[np.int64] = generated.numpy()
    if tokens.shape[1] == NEW_TOKENS:
        # Whisper leaves the first token out.
        tokens = np.concatenate([np.full((len(tokens), 1), start), tokens], 1)
    return tokens


def start_token(written: Written) -> int:
    token = written.model().generation_config.decoder_start_token_id
    return int(2 if token is None else token)


def test_greedy_tokens_are_those_of_generate(written: Written) -> None:
    inputs = dict(written.part(ENCODER).cases()[1].feeds)
    start = start_token(written)

    np.testing.assert_array_equal(greedy(written, inputs, start), expected_tokens(written, inputs, start))


def test_transformers_js_generates_the_same_tokens(written: Written) -> None:
    inputs = dict(written.part(ENCODER).cases()[1].feeds)
    if written.exported.model_type == "whisper":
        # It has no batches of speech.
        inputs = {name: array[:1] for name, array in inputs.items()}
    start = start_token(written)
    classes = {
        "whisper": "WhisperForConditionalGeneration",
        "vision-encoder-decoder": "AutoModelForVision2Seq",
    }
    wanted: dict[str, Any] = {
        "inputs" if name != "attention_mask" else name: js_tensor(array) for name, array in inputs.items()
    }
    # Not the end: a list of no tokens, as the script has no null.
    wanted |= {"max_new_tokens": NEW_TOKENS, "decoder_start_token_id": start, "eos_token_id": []}
    wanted["no_repeat_ngram_size"] = 1
    (answer,) = transformers_js(
        {
            "folder": str(written.folder),
            "class": classes.get(written.exported.model_type, "AutoModelForSeq2SeqLM"),
            "calls": [{"generate": wanted}],
        }
    )

    tokens = np.array(answer["data"]).reshape(answer["dims"])
    np.testing.assert_array_equal(tokens, expected_tokens(written, inputs, start))


def layers_of(written: Written) -> range:
    """Of the decoder."""
    config = written.model().config
    config = getattr(config, "decoder", config)
    names = ("num_decoder_layers", "decoder_layers", "n_layer")
    return range(next(getattr(config, name) for name in names if hasattr(config, name)))


def test_caches_are_named_and_shaped_as_transformers_js_reads_them(written: Written) -> None:
    shapes = {value.name: value.shape for value in written.sessions[DECODER].get_inputs()}
    for name, shape in shapes.items():
        if name.startswith("past_key_values"):
            length = "encoder_sequence_length_out" if ".encoder." in name else "past_decoder_sequence_length"
            assert shape == ["batch_size", 4, length, 8]
    cross = written.exported.model_type != "vision-encoder-decoder" or "use_cache_branch" in shapes
    kinds = ("decoder.", "encoder.") if cross else ("",)
    expected = [
        f"past_key_values.{i}.{kind}{name}" for i in layers_of(written) for kind in kinds for name in ("key", "value")
    ]
    assert [name for name in shapes if name.startswith("past")] == expected


def test_every_weight_is_stored_once(written: Written) -> None:
    for part in written.exported.parts:
        matrices = [
            array
            for tensor in onnx.load(written.path(part.name)).graph.initializer
            if (array := numpy_helper.to_array(tensor)).ndim == 2 and array.size >= 32 * 32
        ]
        contents = {min(array.tobytes(), array.T.tobytes()) for array in matrices}
        assert len(contents) == len(matrices), part.name


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs(attribute.g)


def test_every_value_has_a_name_of_its_own_in_all_graphs(written: Written) -> None:
    for part in written.exported.parts:
        model = onnx.load(written.path(part.name))
        names = [name for graph in graphs(model.graph) for node in graph.node for name in node.output]
        names += [it.name for graph in graphs(model.graph) for it in (*graph.initializer, *graph.input)]
        assert len(set(names)) == len(names)
        # No stack traces, so no folders of the machine that exported it.
        assert not any(node.doc_string or node.metadata_props for graph in graphs(model.graph) for node in graph.node)


def test_later_steps_give_empty_caches_of_the_encoder(written: Written) -> None:
    if "use_cache_branch" not in written.part(DECODER).inputs:
        pytest.skip("attention to the encoder has no cache")
    case = next(case for case in written.part(DECODER).cases() if case.feeds["use_cache_branch"][0])

    answers = written.run(DECODER, case.feeds)

    shapes = {name: array.shape for name, array in answers.items() if ".encoder." in name}
    assert shapes == {
        f"present.{i}.encoder.{name}": (0, 4, 1, 8) for i in layers_of(written) for name in ("key", "value")
    }


def half_decoder(path: Path, *, leak: bool) -> Path:
    """`logits` = (query · key) · value, and perhaps the scores for something else too."""
    past = ("past_key_values.0.encoder.key", "past_key_values.0.encoder.value")
    nodes = [
        helper.make_node("Transpose", [past[0]], ["turned"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["input_ids", "turned"], ["scores"]),
        helper.make_node("MatMul", ["scores", past[1]], ["context"]),
        helper.make_node("ReduceSum" if leak else "Identity", ["scores" if leak else "context"], ["logits"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, "s", 2]) for name in ("input_ids", *past)]
    graph = helper.make_graph(nodes, "half", value, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_merging_refuses_attention_whose_inside_is_used_elsewhere(tmp_path: Path) -> None:
    names = ("present.0.encoder.key", "present.0.encoder.value")
    nodes = [helper.make_node("Identity", ["encoder_hidden_states"], [name]) for name in names]
    hidden, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 1, "s", 2])
        for name in ("encoder_hidden_states", *names)
    )
    graph = helper.make_graph(nodes, "cross", [hidden], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "cross.onnx")

    with pytest.raises(ConversionError, match="cannot be told from the rest"):
        merge_decoder(half_decoder(tmp_path / "decoder.onnx", leak=True), tmp_path / "cross.onnx", 1)


def test_runtime_packs_no_weight_twice(written: Written) -> None:
    """Nothing but attention to the encoder is in a branch."""
    model = onnx.load(written.path(DECODER))
    choices_ = [node for node in model.graph.node if node.op_type == "If"]
    weights = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) >= 32}
    for node in choices_:
        branches = {attribute.name: attribute.g for attribute in node.attribute}
        used = {name: {i for it in graph.node for i in it.input} & weights for name, graph in branches.items()}
        assert not used["then_branch"]
        assert len(used["else_branch"]) == 2


@pytest.mark.skipif(not EVERY, reason="PYWEBML_EVERY_ARCHITECTURE=1 runs it")
def test_decoder_whose_weights_lie_beside_it_answers_like_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_export, "MAX_WEIGHT_BYTES", 10_000)

    written = write_model(tmp_path, SEQ2SEQ, "t5", "text2text-generation")

    part = written.part(DECODER)
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == sorted(
        f"{name}.onnx{ending}" for name in (ENCODER, DECODER) for ending in ("", "_data")
    )
    for case in part.cases():
        assert relative_error(written.sessions[DECODER], case) <= TOLERANCE, case.title
