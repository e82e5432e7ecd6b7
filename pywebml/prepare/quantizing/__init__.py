"""Levels of quantisation: one float32 model, written again with smaller numbers.

    quantized = quantize(Path("model.onnx"), Path("model_q4.onnx"), "q4")
    quantized.nodes, quantized.skipped

Every rewrite is our own over `pywebml.prepare.graph`: tensors are read, changed and put aside one after the other, so
memory stays near the largest of them. The numbers are those of ONNX Runtime's own quantisers where those have a form
for them, and tests compare them bit by bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from pywebml.errors import ConversionError
from pywebml.prepare.graph import INLINE_BYTES, open_graph
from pywebml.prepare.quantizing.editing import Editor, normalize, remove_unused, state_shapes, users
from pywebml.prepare.quantizing.float16 import convert_to_float16
from pywebml.prepare.quantizing.gemm import split_gemm
from pywebml.prepare.quantizing.levels import LEVELS, Level
from pywebml.prepare.quantizing.tied import share_tied

__all__ = ["LEVELS", "Level", "Quantized", "quantize"]


@dataclass(frozen=True, slots=True)
class Quantized:
    """What a level did to a model.

    Attributes:
        nodes: Nodes that compute with quantised weights; for `fp16` tensors in half precision; for `fp32` tensors
            that were stored twice.
        skipped: Weights of 1 KiB and more that stay in float, each with its shape, size and reason.
        notes: What else happened to numbers, such as those beyond the range of float16.
        files: The `.onnx` file and those with external data.
    """

    nodes: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()


def quantize(source: Path, target: Path, dtype: str, *, embeddings: bool = True) -> Quantized:
    """Write a model at a level.

    Args:
        source: A model in float32, with external data or without.
        target: The file to write; what is too large for one file goes to `{target.name}_data` beside it.
        dtype: Key of `LEVELS`.
        embeddings: Whether tables that are looked up (Gather) are quantised too.

    Raises:
        ConversionError: The dtype is unknown, or there was nothing to quantise.
        SourceError: The model is damaged or not safe to read.
        PrepareError: The disk does not allow it.
    """
    if dtype not in LEVELS:
        raise ConversionError(f"'{dtype}' is no level; possible: {', '.join(LEVELS)}.", dtype=dtype)
    level = LEVELS[dtype]
    with open_graph(source, scratch=target.parent) as graph:
        state_shapes(graph)
        editor = Editor(graph)
        normalize(editor)
        # First, so that rewrites see one weight behind all its uses; and once more, since a table and a product that
        # share a weight have the same numbers in different shapes afterwards.
        gone = share_tied(editor)
        count = 0
        if level.quantize is not None:
            split_gemm(editor)
            level.quantize(editor, embeddings)
            count = editor.count
            if count == 0:
                raise ConversionError(
                    f"Quantising to {dtype} changed nothing: the graph has no product with a constant matrix.",
                    dtype=dtype,
                )
        remove_unused(editor)
        skipped = _skipped(editor) if level.quantize is not None else ()
        if level.half:
            halves = convert_to_float16(editor)
            remove_unused(editor)
            if halves == 0:
                raise ConversionError(f"Converting to {dtype} changed nothing: no number is float32.", dtype=dtype)
            count = count or halves
        gone += share_tied(editor)
        if gone:
            editor.notes.append(f"tensors that were stored more than once: {gone}")
        files = graph.write(target)
    return Quantized(count if dtype != "fp32" else gone, skipped, tuple(editor.notes), tuple(files))


def _skipped(editor: Editor) -> tuple[str, ...]:
    used_by = users(editor)
    found = []
    for graph in editor.graph.graphs():
        for tensor in graph.initializer:
            size = editor.graph.size(tensor)
            weight = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
            if not weight or tensor.name in editor.made or len(tensor.dims) < 2 or size < INLINE_BYTES:
                continue
            operators = ", ".join(sorted(used_by.get(tensor.name, {"nothing"})))
            reason = editor.reasons.get(tensor.name, f"it is used by {operators}")
            found.append(f"{tensor.name} {list(tensor.dims)}, {size} bytes: {reason}")
    return tuple(found)
