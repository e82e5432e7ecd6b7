"""Exported text models against PyTorch: every architecture small, with fixed random weights.

Those of `EVERYWHERE` run always. The others are exported in the same way and take minutes in all: they run when the
environment has PYWEBML_EVERY_ARCHITECTURE=1.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoTokenizer

from pywebml.prepare.architectures import ARCHITECTURES, export_model
from pywebml.prepare.convert import MIN_OPSET
from pywebml.prepare.exporting import decoders, encoders
from pywebml.prepare.exporting.decoders import SHARED_CACHE_TYPES, positions
from pywebml.prepare.exporting.texts import SENTENCES
from pywebml.prepare.parts import ExportedModel, Part
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import open_checkpoint
from tests.parity.tiny_models import (
    DECODERS,
    ENCODERS,
    left_padded,
    relative_error,
    session_of,
    write_tiny_checkpoint,
)
from tests.parity.tiny_signal_models import js_tensor, transformers_js

TOLERANCE = 1e-5
PROMPTS = ([9, 8, 14, 21, 33, 47, 52, 60, 71], [12, 40, 18, 66])
NEW_TOKENS = 8

GQA = {"llama", "gpt2", "gemma2"}
EVERYWHERE = {
    *(
        (model_type, "feature-extraction")
        for model_type in (
            *("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta"),
            "xlm-roberta",
        )
    ),
    *(("bert", task) for task in ("fill-mask", "text-classification", "token-classification", "question-answering")),
    *(
        (model_type, "text-generation")
        for model_type in (
            "llama",
            "qwen2",
            "qwen3",
            "gpt2",
            "mistral",
            "gemma",
            "gemma2",
            "gemma3_text",
            "phi",
            "phi3",
        )
    ),
}
EVERY = os.environ.get("PYWEBML_EVERY_ARCHITECTURE") == "1"


def choices(table: Any) -> list[Any]:
    # The zero-shot row is the one of text classification under another name.
    return [
        pytest.param(
            (model_type, task),
            id=f"{model_type}-{task}",
            marks=pytest.mark.skipif(
                not EVERY and (model_type, task) not in EVERYWHERE, reason="PYWEBML_EVERY_ARCHITECTURE=1 runs it"
            ),
        )
        for model_type, tasks in table.items()
        for task in tasks
        if task != "zero-shot-classification"
    ]


@dataclass(frozen=True)
class Written:
    """A tiny model and its files."""

    folder: Path
    exported: ExportedModel
    sessions: dict[str, onnxruntime.InferenceSession]

    def part(self, name: str) -> Part:
        return next(part for part in self.exported.parts if part.name == name)

    def model(self) -> Any:
        auto_class = ARCHITECTURES[self.exported.model_type][self.exported.task].auto_class
        with quiet():
            return getattr(transformers, auto_class).from_pretrained(self.folder)


pytestmark = pytest.mark.usefixtures("one_thread")


def write(folder: Path, model_type: str, task: str) -> Written:
    config = {**ENCODERS, **DECODERS}[model_type]
    write_tiny_checkpoint(folder, model_type, ARCHITECTURES[model_type][task].auto_class, config)
    with_gqa = EVERY or model_type in GQA
    exported = export_model(open_checkpoint(folder, "a test"), task, with_gqa=with_gqa)
    (folder / "onnx").mkdir()
    sessions = {}
    for part in exported.parts:
        path = folder / "onnx" / f"{part.name}.onnx"
        part.write(path, MIN_OPSET)
        sessions[part.name] = session_of(path)
    return Written(folder, exported, sessions)


Writer = Callable[[str, str], Written]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    """Exports each model once, since that is what takes the time."""
    return functools.cache(lambda model_type, task: write(tmp_path_factory.mktemp(model_type), model_type, task))


@pytest.fixture(scope="module", params=choices(encoders.ROWS))
def encoder(request: pytest.FixtureRequest, written: Writer) -> Written:
    return written(*request.param)


@pytest.fixture(scope="module", params=choices(decoders.ROWS))
def decoder(request: pytest.FixtureRequest, written: Writer) -> Written:
    return written(*request.param)


def test_every_architecture_has_a_tiny_model() -> None:
    assert set(ENCODERS) == set(encoders.ROWS)
    assert set(DECODERS) == set(decoders.ROWS)


def test_encoder_answers_like_pytorch(encoder: Written) -> None:
    (part,) = encoder.exported.parts
    cases = part.cases()

    assert len({case.feeds["input_ids"].shape for case in cases}) > 2
    assert any((case.feeds["attention_mask"] == 0).any() for case in cases)
    for case in cases:
        assert relative_error(encoder.sessions["model"], case) <= TOLERANCE, case.title


def test_cases_of_an_encoder_are_what_the_model_itself_answers(encoder: Written) -> None:
    (part,) = encoder.exported.parts
    case = part.cases()[1]
    with torch.no_grad():
        answers = encoder.model()(**{name: torch.from_numpy(feed) for name, feed in case.feeds.items()})

    for name, expected in case.expected.items():
        # At padding, which no one looks at, transformers' kinds of attention differ among themselves.
        kept = np.broadcast_to(case.kept.get(name, np.ones(1, bool)), expected.shape)
        np.testing.assert_allclose(answers[name].numpy()[kept], expected[kept], rtol=0, atol=1e-5)


def test_decoder_answers_like_pytorch_at_every_step(decoder: Written) -> None:
    for part in decoder.exported.parts:
        cases = part.cases()
        assert {case.feeds["input_ids"].shape[0] for case in cases} == {1, 3}
        assert any((case.feeds["attention_mask"] == 0).any() for case in cases)
        for case in cases:
            assert relative_error(decoder.sessions[part.name], case) <= TOLERANCE, f"{part.name}, {case.title}"


def test_parts_for_shared_caches_are_there_where_they_can_be(decoder: Written) -> None:
    wanted = (EVERY or decoder.exported.model_type in GQA) and decoder.exported.model_type in SHARED_CACHE_TYPES

    assert [part.name for part in decoder.exported.parts] == (["model", "model_gqa"] if wanted else ["model"])


def test_names_and_shapes_are_those_that_transformers_js_reads(decoder: Written) -> None:
    graph = onnx.load(decoder.folder / "onnx" / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    both = "past_sequence_length + sequence_length"

    assert shapes["input_ids"] == ["batch_size", "sequence_length"]
    assert shapes["attention_mask"] == ["batch_size", both]
    assert shapes.get("position_ids", shapes["input_ids"]) == shapes["input_ids"]
    assert shapes["logits"] == ["batch_size", "sequence_length", 120]
    for kind in ("key", "value"):
        batch, heads, past, size = shapes[f"past_key_values.0.{kind}"]
        assert (batch, past) == ("batch_size", "past_sequence_length")
        assert isinstance(heads, int)
        assert isinstance(size, int)
        assert shapes[f"present.0.{kind}"] == ["batch_size", heads, both, size]


def expected_tokens(tiny: Written, rows: Any) -> NDArray[np.int64]:
    """What `generate` appends to prompts that are padded on the left."""
    ids, mask = left_padded(rows)
    with quiet(), torch.no_grad():
        tokens = tiny.model().generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    appended: NDArray[np.int64] = tokens[:, ids.shape[1] :].numpy()
    return appended


def step_feeds(part: Part, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask, ids.shape[1])}
    return {name: value for name, value in values.items() if name in part.inputs}


@pytest.mark.parametrize("name", ["model", "model_gqa"])
def test_greedy_tokens_of_a_left_padded_batch_are_those_of_generate(decoder: Written, name: str) -> None:
    if name not in decoder.sessions:
        pytest.skip("this model has no such part here")
    part, session = decoder.part(name), decoder.sessions[name]
    ids, mask = left_padded(PROMPTS)
    shapes = {value.name: value.shape for value in session.get_inputs()}
    caches = [
        np.zeros((len(PROMPTS), shapes[name][1], 0, shapes[name][3]), np.float32)
        for name in part.inputs
        if name.startswith("past")
    ]
    appended = []
    for _ in range(NEW_TOKENS):
        feeds = step_feeds(part, ids, mask)
        past = dict(zip((name for name in part.inputs if name not in feeds), caches, strict=True))
        logits, *caches = session.run(list(part.outputs), {**feeds, **past})
        ids = logits[:, -1:].argmax(axis=2)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        appended.append(ids)

    assert np.concatenate(appended, axis=1).tolist() == expected_tokens(decoder, PROMPTS).tolist()


def test_past_and_present_in_the_same_memory_give_the_same_tokens(decoder: Written) -> None:
    if "model_gqa" not in decoder.sessions:
        pytest.skip("this model has no such part here")
    part, session = decoder.part("model_gqa"), decoder.sessions["model_gqa"]
    ids, mask = left_padded(PROMPTS)
    longest = ids.shape[1] + NEW_TOKENS + 5
    # Numbers that would be seen if anything read what no step has written yet.
    buffers = {
        value.name.removeprefix("past_key_values."): onnxruntime.OrtValue.ortvalue_from_numpy(
            np.full((len(PROMPTS), value.shape[1], longest, value.shape[3]), 1e4, np.float32)
        )
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    appended = []
    for _ in range(NEW_TOKENS):
        binding = session.io_binding()
        for name, feed in step_feeds(part, ids, mask).items():
            binding.bind_cpu_input(name, feed)
        for name, buffer in buffers.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
            binding.bind_ortvalue_output(f"present.{name}", buffer)
        binding.bind_output("logits", "cpu")
        session.run_with_iobinding(binding)
        logits = binding.get_outputs()[-1].numpy()
        ids = logits[:, -1:].argmax(axis=2)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        appended.append(ids)

    written = mask.shape[1] - 1
    for buffer in buffers.values():
        assert (np.abs(buffer.numpy()[:, :, :written]) < 1e3).all()
        assert (buffer.numpy()[:, :, written:] == 1e4).all()
    assert np.concatenate(appended, axis=1).tolist() == expected_tokens(decoder, PROMPTS).tolist()


def test_several_tokens_after_a_past_are_refused_for_a_batch_that_shares_its_cache(decoder: Written) -> None:
    if "model_gqa" not in decoder.sessions:
        pytest.skip("this model has no such part here")
    case = next(it for it in decoder.part("model").cases() if it.title == "three texts, padded, several tokens")

    with pytest.raises(Exception, match="batch_size must be 1 when sequence_length > 1"):
        decoder.sessions["model_gqa"].run(None, dict(case.feeds))


def test_transformers_js_embeds_like_pytorch(written: Writer) -> None:
    bert = written("bert", "feature-extraction")
    texts = [SENTENCES[0], SENTENCES[7]]
    (answer,) = transformers_js(
        {"folder": str(bert.folder), "task": "feature-extraction", "calls": [{"pipeline": [texts]}]}
    )
    with quiet(), torch.no_grad():
        tokens = AutoTokenizer.from_pretrained(bert.folder)(texts, padding=True, return_tensors="pt")
        expected = bert.model()(**tokens).last_hidden_state.numpy()
    hidden = np.array(answer["data"], np.float32).reshape(answer["dims"])

    assert hidden.shape == expected.shape
    kept = tokens["attention_mask"].numpy() == 1
    assert np.abs(hidden - expected)[kept].max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(("model_type", "file"), [("llama", "model"), ("gpt2", "model"), ("llama", "model_gqa")])
def test_transformers_js_generates_the_tokens_of_generate(written: Writer, model_type: str, file: str) -> None:
    tiny = written(model_type, "text-generation")
    ids, mask = left_padded(PROMPTS)
    inputs = {"inputs": js_tensor(ids), "attention_mask": js_tensor(mask)}
    (answer,) = transformers_js(
        {
            "folder": str(tiny.folder),
            "class": "AutoModelForCausalLM",
            "options": {"model_file_name": file},
            "calls": [{"generate": {**inputs, "max_new_tokens": NEW_TOKENS, "eos_token_id": -1}}],
        }
    )
    tokens = np.array(answer["data"]).reshape(answer["dims"])

    assert tokens[:, ids.shape[1] :].tolist() == expected_tokens(tiny, PROMPTS).tolist()
