"""From a PyTorch module to an ONNX file: one way for every kind of model.

The exporter is the one over `torch.export`: the older one over TorchScript is faster but deprecated.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import onnx
import onnx_ir
import torch
from torch import Tensor, nn
from transformers.exporters.utils import apply_patches

from pywebml.errors import ConversionError
from pywebml.prepare.compare import check_versions
from pywebml.prepare.exporting.tied import share_tied
from pywebml.prepare.quiet import quiet

BATCH, SEQUENCE = "batch_size", "sequence_length"
"""Names of dimensions. Transformers.js resolves the first one alone when it makes an empty cache, and takes any other
name for 0; so sizes that do not vary have to be numbers."""
MAX_WEIGHT_BYTES = 1_900_000_000
"""An ONNX file is one protobuf message, which ends at 2 GiB."""
_SMALL_BYTES = 1024

Dims = Mapping[str, Mapping[int, str]]
"""Name of an input or output to axis to the name of that dimension; all other axes have fixed sizes."""
Shape = list[str | int]


def export_module(
    module: nn.Module,
    example_inputs: Sequence[Tensor],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_dims: Dims,
    path: Path,
    opset: int,
) -> None:
    """Write a module as an ONNX file; the same module gives the same bytes.

    Weights of more than `MAX_WEIGHT_BYTES` go to `{name}_data` beside the file.

    Args:
        module: In evaluation mode; takes tensors by position and gives a tensor or a tuple of tensors.
        example_inputs: A tensor of its own for every input. Dimensions that vary are at least 2 there, and different
            where their names are, because the exporter may take a coincidence for a rule.
        input_names: In order.
        output_names: In order.
        dynamic_dims: The dimensions of inputs and outputs that vary.
        path: The file.
        opset: Version of ONNX's operators.

    Raises:
        ConversionError: The exporter failed, or the file is not what was asked for or not what the web runtime loads.
    """
    require_evaluation(module)
    free = tuple(dict.fromkeys(dynamic_dims.get(name, {}), torch.export.Dim.DYNAMIC) for name in input_names)
    by_star = any(it.kind is it.VAR_POSITIONAL for it in inspect.signature(module.forward).parameters.values())
    try:
        # transformers keeps a list of what PyTorch's exporter cannot follow, and how to say it otherwise.
        with quiet(), _no_prints(), torch.no_grad(), apply_patches("onnx"):
            outputs = module(*example_inputs)
            program = torch.onnx.export(
                module,
                tuple(example_inputs),
                dynamo=True,
                dynamic_shapes=(free,) if by_star else free,
                input_names=list(input_names),
                output_names=list(output_names),
                opset_version=opset,
                verbose=False,
            )
    # The exporter's stages raise errors of their own without a common base.
    except Exception as error:
        raise ConversionError(f"PyTorch cannot export this model: {_last_words(error)}") from error
    if program is None:
        raise ConversionError("PyTorch's exporter returned nothing.")
    examples = (*example_inputs, *((outputs,) if isinstance(outputs, Tensor) else outputs))
    if len(examples) != len(input_names) + len(output_names):
        raise ConversionError(
            f"The model gives {len(examples) - len(example_inputs)} outputs; expected {', '.join(output_names)}."
        )
    names = (*input_names, *output_names)
    wished = {name: _shape(it, dynamic_dims.get(name, {})) for name, it in zip(names, examples, strict=True)}
    try:
        _write(program.model, wished, len(input_names), path, opset)
    except BaseException:
        path.unlink(missing_ok=True)
        data_path(path).unlink(missing_ok=True)
        raise


def require_evaluation(module: nn.Module) -> None:
    """Refuse a model whose answers would have noise in them.

    Raises:
        ConversionError: A part of it is in training mode, for which some exporters leave models.
    """
    if any(part.training for part in module.modules()):
        raise ConversionError("The model is in training mode: dropout would be in its file and in what it answers.")


def data_path(path: Path) -> Path:
    """Where the weights lie that a file has outside."""
    return path.with_name(f"{path.name}_data")


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write an ONNX file; the same model gives the same bytes."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators; 0 when the file names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


@contextmanager
def _no_prints() -> Iterator[None]:
    """What the exporter prints when it fails is the graph up to there, several times."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _write(model: onnx_ir.Model, wished: Mapping[str, Shape], inputs: int, path: Path, opset: int) -> None:
    share_tied(model)
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    outside = sum(tensor.nbytes for tensor in tensors) > MAX_WEIGHT_BYTES
    if outside:
        # Small ones stay, since among them are the shapes and indices that readers look at.
        model = onnx_ir.external_data.unload_from_model(
            model, path.parent, data_path(path).name, size_threshold_bytes=_SMALL_BYTES
        )
    proto = onnx_ir.to_proto(model)
    _strip(proto)
    check_versions(path, opset_of(proto), proto.ir_version)
    if opset_of(proto) != opset:
        raise ConversionError(f"The exporter wrote opset {opset_of(proto)} instead of {opset}. Choose another --opset.")
    _name_dims(proto.graph, wished, inputs)
    save_model(proto, path)
    try:
        # A message of that size is no argument for the checker, and shapes are only inferred from messages.
        onnx.checker.check_model(path if outside else proto, full_check=not outside)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"The exporter wrote a file that is not valid ONNX: {error}") from error


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes: stack traces with paths of this machine, and shapes that a reader infers again."""
    items = [model, *model.functions]
    for graph in _graphs(model.graph):
        del graph.value_info[:]
        items += [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]
    for function in model.functions:
        items += function.node
    for item in items:
        item.doc_string = ""
        del item.metadata_props[:]


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and all that its nodes hold, such as the branches of an `If`."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _name_dims(graph: onnx.GraphProto, wished: Mapping[str, Shape], inputs: int) -> None:
    """Give inputs and outputs the wished dimensions in place of the exporter's symbols."""
    values = (*graph.input, *graph.output)
    names = [value.name for value in values]
    if names != list(wished) or len(graph.input) != inputs:
        raise ConversionError(f"The exporter gave the file inputs and outputs {names}; expected {list(wished)}.")
    for value in values:
        dims, wish = value.type.tensor_type.shape.dim, wished[value.name]
        found: Shape = [dim.dim_param or dim.dim_value for dim in dims]
        # A number in place of a name means that the file works for that size alone; a symbol in place of a number
        # only that the exporter did not see that it never changes.
        if len(found) != len(wish) or any(
            isinstance(have, int) and have != want for have, want in zip(found, wish, strict=True)
        ):
            raise ConversionError(f"The exporter gave '{value.name}' the shape {found}; expected {wish}.")
        for dim, want in zip(dims, wish, strict=True):
            if isinstance(want, int):
                dim.dim_value = want
            else:
                dim.dim_param = want


def _shape(tensor: Tensor, names: Mapping[int, str]) -> Shape:
    return [names.get(axis, size) for axis, size in enumerate(tensor.shape)]


def _last_words(error: BaseException) -> str:
    """What went wrong without the exporter's report around it, which can be hundreds of lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])}"
