"""Encoders for hidden states, in the form in which conversions take them that know no other part."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PretrainedConfig

from pywebml.prepare.architectures import row_of
from pywebml.prepare.exporting.encoders import HEADS, encoder_parts, token_inputs
from pywebml.prepare.exporting.encoders import Encoder as EncoderWithHead
from pywebml.prepare.exporting.rows import Loaded, load_config, load_model
from pywebml.prepare.exporting.torch_export import MAX_OPSET, MIN_OPSET, check_versions, opset_of, save_model
from pywebml.prepare.source import Checkpoint

__all__ = [
    "MAX_OPSET",
    "MIN_OPSET",
    "OUTPUT",
    "Encoder",
    "check_versions",
    "export_encoder",
    "load_encoder",
    "opset_of",
    "save_model",
]

TASK = "feature-extraction"
(OUTPUT,) = HEADS[TASK].outputs


class Encoder(EncoderWithHead):
    """An encoder with its one output.

    Args:
        loaded: The model.
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded.model, token_inputs(loaded.model), (OUTPUT,))
        self.loaded = loaded

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Int64 tensors of shape [batch, sequence] to float32 [batch, sequence, hidden]."""
        (hidden,) = super().__call__(*inputs)
        answer: Tensor = hidden
        return answer

    @property
    def config(self) -> PretrainedConfig:
        """The checkpoint's configuration."""
        return self.model.config


def load_encoder(checkpoint: Checkpoint) -> Encoder:
    """Read a checkpoint in float32, ready for inference.

    Raises:
        ConversionError: It is no encoder that can be converted, or weights are missing.
    """
    config = load_config(checkpoint.folder)
    row = row_of(config.model_type, TASK)
    loaded = Loaded(load_model(checkpoint.folder, config, row), checkpoint, TASK, with_gqa=False)
    encoder = Encoder(loaded)
    encoder.eval()
    return encoder


def export_encoder(encoder: Encoder, path: Path, opset: int) -> None:
    """Write the encoder as an ONNX file with free batch and sequence dimensions.

    Raises:
        ConversionError: The exporter failed, or the file is not what the web runtime loads.
    """
    (part,) = encoder_parts(encoder.loaded)
    part.write(path, opset)
