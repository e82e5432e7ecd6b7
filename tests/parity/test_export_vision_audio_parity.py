"""Exported models of images and sound against PyTorch: every architecture small, with fixed random weights.

Those of `ALWAYS` run always. The others are exported in the same way and take minutes in all: they run when the
environment has PYWEBML_EVERY_ARCHITECTURE=1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pywebml.prepare.architectures import infer_task
from pywebml.prepare.exporting import audio, vision
from tests.parity.tiny_models import relative_error
from tests.parity.tiny_signal_models import (
    IMAGES,
    SOUNDS,
    TOLERANCE,
    Written,
    choices,
    js_tensor,
    transformers_js,
    write_model,
)

MODELS = {**IMAGES, **SOUNDS}
ALWAYS = (
    ("vit", "image-classification"),
    ("resnet", "image-classification"),
    ("dinov2", "image-feature-extraction"),
    ("clip", "zero-shot-image-classification"),
    ("detr", "object-detection"),
    ("wav2vec2", "automatic-speech-recognition"),
    ("audio-spectrogram-transformer", "audio-classification"),
)
CLASSES = {
    "image-classification": "AutoModelForImageClassification",
    "image-feature-extraction": "AutoModel",
    "zero-shot-image-classification": "AutoModel",
    "object-detection": "AutoModelForObjectDetection",
    "automatic-speech-recognition": "AutoModelForCTC",
    "audio-classification": "AutoModelForAudioClassification",
    "audio-frame-classification": "AutoModelForAudioFrameClassification",
    "feature-extraction": "AutoModel",
}
SHAPES: dict[tuple[str, str], dict[str, list[str | int]]] = {
    ("vit", "model"): {"pixel_values": ["batch_size", 3, 16, 16], "logits": ["batch_size", 5]},
    ("resnet", "model"): {"pixel_values": ["batch_size", 3, "height", "width"], "logits": ["batch_size", 5]},
    ("clip", "model"): {
        "input_ids": ["text_batch_size", "sequence_length"],
        "pixel_values": ["image_batch_size", 3, 16, 16],
        "attention_mask": ["text_batch_size", "sequence_length"],
        "logits_per_image": ["image_batch_size", "text_batch_size"],
        "logits_per_text": ["text_batch_size", "image_batch_size"],
        "text_embeds": ["text_batch_size", 24],
        "image_embeds": ["image_batch_size", 24],
    },
    ("clip", "text_model"): {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "sequence_length"],
        "text_embeds": ["batch_size", 24],
        "last_hidden_state": ["batch_size", "sequence_length", 32],
    },
    ("clip", "vision_model"): {
        "pixel_values": ["batch_size", 3, 16, 16],
        "image_embeds": ["batch_size", 24],
        "last_hidden_state": ["batch_size", 17, 32],
    },
    ("detr", "model"): {
        "pixel_values": ["batch_size", 3, "height", "width"],
        "pixel_mask": ["batch_size", "mask_height", "mask_width"],
        "logits": ["batch_size", 6, 6],
        "pred_boxes": ["batch_size", 6, 4],
    },
    ("wav2vec2", "model"): {
        "input_values": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "sequence_length"],
        "logits": ["batch_size", "frame_sequence_length", 24],
    },
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=choices(MODELS, ALWAYS))
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write_model(tmp_path_factory.mktemp("model"), MODELS, *request.param)


def test_every_architecture_has_a_tiny_model() -> None:
    assert set(IMAGES) == set(vision.ROWS)
    assert set(SOUNDS) == set(audio.ROWS)


def test_parts_answer_like_pytorch(written: Written) -> None:
    for part in written.exported.parts:
        cases = part.cases()
        assert len({next(iter(case.feeds.values())).shape[0] for case in cases}) >= 2
        for case in cases:
            assert set(case.feeds) == set(part.inputs)
            assert set(case.expected) == set(part.outputs)
            assert relative_error(written.sessions[part.name], case) <= TOLERANCE, f"{part.name}, {case.title}"


def test_files_have_the_names_and_shapes_that_transformers_js_reads(written: Written) -> None:
    for part in written.exported.parts:
        session = written.sessions[part.name]
        assert tuple(value.name for value in session.get_inputs()) == part.inputs
        assert tuple(value.name for value in session.get_outputs()) == part.outputs
        shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
        expected = SHAPES.get((written.exported.model_type, part.name))
        if expected and list(expected)[-1] in shapes:
            assert shapes == expected


def test_answers_depend_on_every_input(written: Written) -> None:
    for part in written.exported.parts:
        case = part.cases()[0]
        before = written.run(part.name, case.feeds)
        for name, array in case.feeds.items():
            other = array.copy()
            other[:, : array.shape[1] // 2] = 0 if array.dtype == np.float32 or "mask" in name else 5
            after = written.run(part.name, {**case.feeds, name: other})
            assert any(not np.array_equal(before[it], after[it]) for it in before), f"{part.name}, {name}"


def test_task_is_inferred_from_the_checkpoint(written: Written) -> None:
    assert infer_task(written.model().config) == written.exported.task


def test_transformers_js_gives_the_same_outputs(written: Written) -> None:
    for part in written.exported.parts:
        case = part.cases()[1]
        names = {"text_model": "CLIPTextModelWithProjection", "vision_model": "CLIPVisionModelWithProjection"}
        if written.exported.model_type == "siglip":
            names = {"text_model": "SiglipTextModel", "vision_model": "SiglipVisionModel"}
        request: dict[str, Any] = {
            "folder": str(written.folder),
            "class": names.get(part.name, CLASSES[written.exported.task]),
            "calls": [{"forward": {name: js_tensor(array) for name, array in case.feeds.items()}}],
        }
        (answer,) = transformers_js(request)
        for name, expected in case.expected.items():
            found = np.array(answer[name]["data"]).reshape(answer[name]["dims"])
            kept = np.broadcast_to(case.kept.get(name, np.ones(1, bool)), expected.shape)
            assert np.abs(found - expected)[kept].max() <= TOLERANCE * np.abs(expected[kept]).max(), name
