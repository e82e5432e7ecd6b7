"""Models of sound: letters by frame (CTC), classes and hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pywebml.prepare.exporting.plain import Batch, ByPosition, plain_part
from pywebml.prepare.exporting.rows import Loaded, Row, Table
from pywebml.prepare.exporting.signals import noise
from pywebml.prepare.exporting.torch_export import BATCH, SEQUENCE, Dims
from pywebml.prepare.parts import Part

SAMPLES, MASK = "input_values", "attention_mask"
FRAMES = "frame_sequence_length"
FRAME_COUNTS = ((50, 31), (40, 12, 25))
"""How long the sounds of the cases are, in frames of the model."""


def wave_parts(loaded: Loaded, output: str, *, per_frame: bool) -> tuple[Part, ...]:
    """The one part of a model of raw sound, named `model`: `input_values` and `attention_mask` to one output.

    Args:
        loaded: The model.
        output: `logits` or `last_hidden_state`.
        per_frame: Whether the output has an axis for frames behind the one for the batch.
    """
    module = ByPosition(loaded.model, [SAMPLES, MASK], [output]).eval()
    waves = {0: BATCH, 1: SEQUENCE}
    dims: Dims = {SAMPLES: waves, MASK: waves, output: {0: BATCH, 1: FRAMES} if per_frame else {0: BATCH}}

    def kept(batch: Batch) -> Mapping[str, NDArray[np.bool_]]:
        return {output: _frames_kept(loaded.model, batch)} if per_frame else {}

    return (plain_part("model", module, dims, partial(_waves, loaded), kept),)


def _waves(loaded: Loaded) -> list[Batch]:
    config, generator = loaded.config, torch.Generator().manual_seed(0)
    stride = math.prod(config.conv_stride)
    found: list[Batch] = []
    for frames in FRAME_COUNTS:
        lengths = torch.tensor(frames) * stride + max(config.conv_kernel)
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(torch.int64)
        found.append({SAMPLES: torch.randn(mask.shape, generator=generator) * mask, MASK: mask})
    return found


def _frames_kept(model: Any, batch: Batch) -> NDArray[np.bool_]:
    lengths = model._get_feat_extract_output_lengths(batch[MASK].sum(-1))
    longest = int(model._get_feat_extract_output_lengths(batch[MASK].shape[1]))
    kept: NDArray[np.bool_] = (torch.arange(longest) < lengths[:, None])[..., None].numpy()
    return kept


def spectrogram_parts(loaded: Loaded, output: str) -> tuple[Part, ...]:
    """The one part of a model of spectrograms of one length, named `model`."""
    module = ByPosition(loaded.model, [SAMPLES], [output]).eval()
    shape = (loaded.config.max_length, loaded.config.num_mel_bins)
    dims: Dims = {SAMPLES: {0: BATCH}, output: {0: BATCH}}
    return (plain_part("model", module, dims, lambda: [{SAMPLES: it} for it in noise(shape)]),)


_WAVE_ROWS = {
    "automatic-speech-recognition": Row("AutoModelForCTC", partial(wave_parts, output="logits", per_frame=True)),
    "audio-classification": Row(
        "AutoModelForAudioClassification", partial(wave_parts, output="logits", per_frame=False)
    ),
    "feature-extraction": Row("AutoModel", partial(wave_parts, output="last_hidden_state", per_frame=True)),
}
_ALL_WAVE_ROWS = {
    **_WAVE_ROWS,
    "audio-frame-classification": Row(
        "AutoModelForAudioFrameClassification", partial(wave_parts, output="logits", per_frame=True)
    ),
}

ROWS: Table = {
    **dict.fromkeys(("hubert", "unispeech"), _WAVE_ROWS),
    **dict.fromkeys(("unispeech-sat", "wav2vec2", "wavlm"), _ALL_WAVE_ROWS),
    "audio-spectrogram-transformer": {
        "audio-classification": Row("AutoModelForAudioClassification", partial(spectrogram_parts, output="logits")),
    },
}
