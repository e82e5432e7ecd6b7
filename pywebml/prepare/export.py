"""Encoders from PyTorch to ONNX: `input_ids`, `attention_mask`[, `token_type_ids`] to `last_hidden_state`.

The exporter is the one over `torch.export`: the older one over TorchScript is faster but deprecated.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from pywebml.errors import ConversionError
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import Checkpoint

ENCODERS = (
    "albert",
    "bert",
    "camembert",
    "distilbert",
    "electra",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
"""Values of `model_type` that the tests or a person have seen agree with PyTorch."""

OUTPUT = "last_hidden_state"
BATCH, SEQUENCE = "batch_size", "sequence_length"
MAX_OPSET, MAX_IR_VERSION = 26, 13
"""The newest that onnxruntime-web 1.30 loads."""
MIN_OPSET = 18
"""The exporter's own; older ones would need its version converter, which is not reliable."""
MAX_WEIGHT_BYTES = 1_900_000_000
"""An ONNX file is one protobuf message, which ends at 2 GiB."""


class Encoder(nn.Module):
    """A model with its inputs by position and one output.

    Args:
        model: The encoder, in float32.
        input_names: What the exported file takes, in order.
    """

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Int64 tensors of shape [batch, sequence] to float32 [batch, sequence, hidden]."""
        output = self.model(**dict(zip(self.input_names, inputs, strict=True)), return_dict=True)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @property
    def config(self) -> PretrainedConfig:
        """The checkpoint's configuration."""
        return self.model.config


def load_encoder(checkpoint: Checkpoint) -> Encoder:
    """Read a checkpoint in float32, ready for inference.

    Raises:
        ConversionError: It is no encoder that can be converted, or weights are missing.
    """
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False, local_files_only=True)
    # Whatever transformers makes of a configuration that it does not know or that is wrong.
    except Exception as error:
        raise ConversionError(f"transformers cannot use config.json: {error}") from error
    if config.model_type not in ENCODERS or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ConversionError(
            f"Models of type '{config.model_type}' cannot be converted: this version converts encoders of the types "
            f"{', '.join(ENCODERS)}.",
            model_type=config.model_type,
        )
    try:
        with quiet():
            # Weights of a pooler may be missing, since its output is not used; a fixed seed keeps the file the same.
            torch.manual_seed(0)
            # Plain attention gives a smaller graph than the fused operator: no tests for NaN in every layer.
            model, loaded = AutoModel.from_pretrained(
                checkpoint.folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                dtype=torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
    except Exception as error:
        raise ConversionError(f"transformers cannot load the weights: {error}") from error
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
    mismatched = sorted(str(key) for key in loaded["mismatched_keys"])
    if missing or mismatched:
        raise ConversionError(
            f"The weights do not fit config.json: {len(missing)} are missing and {len(mismatched)} have another shape, "
            f"such as {(missing + mismatched)[0]}. Give a complete checkpoint.",
            missing=missing,
            mismatched=mismatched,
        )
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if size > MAX_WEIGHT_BYTES:
        raise ConversionError(
            f"The weights take {size} bytes in float32; one ONNX file holds at most {MAX_WEIGHT_BYTES}. This version "
            "writes no files with external data.",
            size=size,
        )
    return Encoder(model, _input_names(model)).eval()


def _input_names(model: PreTrainedModel) -> tuple[str, ...]:
    names = ["input_ids", "attention_mask"]
    # With a single token type (RoBERTa) tokenizers give none, and transformers fills in zeros.
    if "token_type_ids" in inspect.signature(model.forward).parameters and model.config.type_vocab_size > 1:
        names.append("token_type_ids")
    return tuple(names)


def export_encoder(encoder: Encoder, path: Path, opset: int) -> None:
    """Write the encoder as an ONNX file with free batch and sequence dimensions.

    Raises:
        ConversionError: The exporter failed, or the file is not what the web runtime loads.
    """
    # Two of each at least, so that neither dimension looks like a constant 1; a tensor of its own for each input,
    # because the exporter takes one tensor in two places for one input.
    inputs = tuple(torch.ones((2, 3), dtype=torch.int64) for _ in encoder.input_names)
    free = {0: torch.export.Dim(BATCH, min=1), 1: torch.export.Dim(SEQUENCE, min=1)}
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                encoder,
                inputs,
                dynamo=True,
                dynamic_shapes=(tuple(free for _ in inputs),),
                input_names=list(encoder.input_names),
                output_names=[OUTPUT],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:
        raise ConversionError(f"PyTorch cannot export this model: {error}") from error
    if program is None:
        raise ConversionError("PyTorch's exporter returned nothing.")
    model = program.model_proto
    _strip(model)
    _check(model, encoder, opset)
    save_model(model, path)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write an ONNX file; the same model gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators; 0 when the file names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def check_versions(model: onnx.ModelProto) -> None:
    """Refuse what the web runtime would refuse.

    Raises:
        ConversionError: Operators or file format are too new.
    """
    opset = opset_of(model)
    if not 0 < opset <= MAX_OPSET or model.ir_version > MAX_IR_VERSION:
        raise ConversionError(
            f"The file has opset {opset} and IR version {model.ir_version}; the web runtime loads up to opset "
            f"{MAX_OPSET} and IR version {MAX_IR_VERSION}. Choose a lower --opset.",
            opset=opset,
            ir_version=model.ir_version,
        )


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces with paths of this machine, and shapes that a reader infers again."""
    graph = model.graph
    del graph.value_info[:]
    for item in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def _check(model: onnx.ModelProto, encoder: Encoder, opset: int) -> None:
    check_versions(model)
    if opset_of(model) != opset:
        raise ConversionError(f"The exporter wrote opset {opset_of(model)} instead of {opset}. Choose another --opset.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"The exporter wrote a file that is not valid ONNX: {error}") from error
    hidden = encoder.config.hidden_size
    expected = {name: [BATCH, SEQUENCE] for name in encoder.input_names} | {OUTPUT: [BATCH, SEQUENCE, hidden]}
    found = {value.name: _shape(value) for value in (*model.graph.input, *model.graph.output)}
    if found != expected:
        raise ConversionError(f"The exporter gave the file inputs and outputs {found}; expected {expected}.")


def _shape(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
