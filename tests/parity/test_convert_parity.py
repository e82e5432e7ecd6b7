"""Whole conversions of one model of each family at every level: what lies in the hub answers like PyTorch, in ONNX
Runtime and in the web's runtime, within the level's tolerance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pywebml.inspecting import level_of
from pywebml.models.files import DTYPE_SUFFIXES
from pywebml.prepare.architectures import export_model
from pywebml.prepare.compare import compare, read_description, require
from pywebml.prepare.convert import USEFUL_MODES, Choices, convert
from pywebml.prepare.parts import Case
from pywebml.prepare.source import open_checkpoint
from tests.parity.tiny_models import DECODERS, ENCODERS, write_tiny_checkpoint
from tests.parity.tiny_signal_models import IMAGES, SEQ2SEQ, SOUNDS, write_checkpoint
from tests.parity.web_runtime import WebRuntime

# Of ONNX Runtime, native and web, on the same numbers: other kernels, another order of sums.
BETWEEN_RUNTIMES = 0.02
# Layers that do not make differences larger than they were, as trained ones do not: levels are what is tested.
SPREAD = 1 / 3
FAMILIES = {
    **dict.fromkeys(("bert", "deberta-v2", "distilbert", "modernbert", "mpnet", "roberta"), "feature-extraction"),
    **dict.fromkeys(
        ("gemma", "gemma3_text", "gpt2", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3"), "text-generation"
    ),
    **dict.fromkeys(("bart", "marian", "t5"), "text2text-generation"),
    **dict.fromkeys(("resnet", "vit"), "image-classification"),
    "vision-encoder-decoder": "image-to-text",
    "clip": "zero-shot-image-classification",
    "detr": "object-detection",
    **dict.fromkeys(("wav2vec2", "whisper"), "automatic-speech-recognition"),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def web() -> Iterator[WebRuntime]:
    with WebRuntime() as runtime:
        yield runtime


def write(folder: Path, name: str, task: str) -> None:
    for configs, auto_class in ((ENCODERS, "AutoModel"), (DECODERS, "AutoModelForCausalLM")):
        if name in configs:
            write_tiny_checkpoint(folder, name, auto_class, configs[name], spread=SPREAD)
            return
    tiny: Any = next(configs for configs in (SEQ2SEQ, IMAGES, SOUNDS) if name in configs)
    write_checkpoint(folder, tiny, name, task, spread=SPREAD)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_level_of_every_part_answers_like_pytorch_in_both_runtimes(
    name: str, tmp_path: Path, web: WebRuntime
) -> None:
    folder = tmp_path / "checkpoint"
    write(folder, name, FAMILIES[name])
    choices = Choices(task=FAMILIES[name], modes=USEFUL_MODES)
    checkpoint = open_checkpoint(folder, "a test")

    target = convert(checkpoint, tmp_path / "hub", f"tests/{name}", choices, log=lambda _line: None)

    parts = export_model(checkpoint, FAMILIES[name]).parts
    report = json.loads((target / "report.json").read_text())
    assert [(row["part"], row["dtype"]) for row in report["files"]] == [
        (part.name, dtype) for part in parts for dtype in USEFUL_MODES
    ]
    for part in parts:
        cases = part.cases()
        for dtype in USEFUL_MODES:
            path = target / "onnx" / f"{part.name}{DTYPE_SUFFIXES[dtype]}.onnx"
            require(compare(path, cases, threads=1), choices.tolerance(dtype), part=part.name, dtype=dtype)
            check_in_browser_runtime(web, path, cases, choices, part.name, dtype)
            # In a graph with convolutions signed weights would be slow, so that int8 is uint8 there.
            assert level_of(read_description(path)) in {"q8": ("uint8",), "int8": ("int8", "uint8")}.get(
                dtype, (dtype,)
            )


def check_in_browser_runtime(web: WebRuntime, path: Path, cases: Any, choices: Choices, part: str, dtype: str) -> None:
    answers = web.run(path, [case.feeds for case in cases])
    measured = [
        Case(case.title, case.feeds, {output: answer[output] for output in case.expected}, case.kept)
        for case, answer in zip(cases, answers, strict=True)
    ]
    # Near the native runtime, which is within the tolerance.
    found = compare(path, measured, threads=1)
    assert found.max_rel_error < BETWEEN_RUNTIMES, f"{part} {dtype}"
