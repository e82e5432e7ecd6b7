"""8 bits: products and convolutions of whole numbers, with activations quantised while the model runs.

`MatMul` becomes DynamicQuantizeLinear → MatMulInteger → Cast → Mul, in the form that ONNX Runtime fuses into one
kernel; `Conv` likewise with ConvInteger; `Gather` from a table becomes GatherBlockQuantized with one scale per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from pywebml.prepare.quantizing.blocks import (
    is_table,
    product_weight,
    quantize_rows,
    quantize_table,
    row_block_size,
    row_blocks,
)
from pywebml.prepare.quantizing.editing import Editor, Scope, find_weight, is_standard

Quantized = tuple[NDArray[Any], NDArray[np.float32], NDArray[Any]]
"""Values, scales, zero points."""

MIDDLE = 128
"""Zero point of unsigned numbers that stand for a range around zero."""


@dataclass(frozen=True, slots=True)
class Integers:
    """How weights of products are stored.

    Attributes:
        signed: int8 instead of uint8.
        highest: Largest magnitude of a signed number. x86 without VNNI adds two products of uint8 and int8 in 16 bits,
            which holds for numbers up to 64.
    """

    signed: bool
    highest: int = 64


def quantize_integers(editor: Editor, integers: Integers, *, tables: bool) -> None:
    """Rewrite all products, convolutions and, if wished, tables with constant float32 weights."""
    shared: dict[tuple[int, str], tuple[str, str, str]] = {}
    tabled = _table_names(editor) if tables else set()

    def quantize_input(scope: Scope, name: str, nodes: list[NodeProto]) -> tuple[str, str, str]:
        key = (id(scope), name)
        if key not in shared:
            outputs = tuple(editor.fresh(f"{name}_{what}") for what in ("quantized", "scale", "zero_point"))
            title = editor.fresh(f"{name}_quantize")
            nodes.append(helper.make_node("DynamicQuantizeLinear", [name], outputs, name=title))
            shared[key] = (outputs[0], outputs[1], outputs[2])
        return shared[key]

    def integer_product(
        scope: Scope, node: NodeProto, op_type: str, names: tuple[str, ...], scale_name: str
    ) -> list[NodeProto]:
        """From the input's number form to the product in float32, the last node without its output's name."""
        nodes: list[NodeProto] = []
        quantized, scale, zero_point = quantize_input(scope, node.input[0], nodes)
        output = node.output[0]
        whole, real, factor = (editor.fresh(f"{output}_{what}") for what in ("integer", "cast", "scale"))
        title = editor.fresh(f"{node.name or output}_quantized")
        product = helper.make_node(op_type, [quantized, names[0], zero_point, names[1]], [whole], name=title)
        if op_type == "ConvInteger":
            product.attribute.extend(node.attribute)
        nodes += [
            product,
            helper.make_node("Cast", [whole], [real], name=f"{title}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [scale, scale_name], [factor], name=f"{title}_scale"),
            helper.make_node("Mul", [real, factor], [output], name=f"{title}_output"),
        ]
        editor.count += 1
        return nodes

    def matmul(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        weight = product_weight(editor, scope, node, "8-bit")
        if weight is None:
            return None
        tied = weight.transposed and weight.tensor.name in tabled
        form = "table" if tied else integers

        def make() -> tuple[str, ...]:
            values = editor.read(weight)
            quantized, scales, zero_points = symmetric_columns(values) if tied else quantize_columns(values, integers)
            name = weight.tensor.name
            return (
                editor.add(weight.scope, f"{name}_quantized", quantized),
                editor.add(weight.scope, f"{name}_zero_point", zero_points),
                editor.add(weight.scope, f"{name}_scale", scales),
            )

        names = editor.once(weight, form, make)
        return integer_product(scope, node, "MatMulInteger", names, names[2])

    def conv(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        weight = find_weight(scope, node.input[1])
        if weight is None or weight.tensor.data_type != TensorProto.FLOAT:
            return None

        def make() -> tuple[str, ...]:
            quantized, scales = quantize_filters(editor.read(weight))
            name = weight.tensor.name
            return (
                editor.add(weight.scope, f"{name}_quantized", quantized),
                editor.add(weight.scope, f"{name}_zero_point", np.array(MIDDLE, np.uint8)),
                editor.add(weight.scope, f"{name}_scale", scales),
            )

        names = editor.once(weight, "filters", make)
        nodes = integer_product(scope, node, "ConvInteger", names, names[2])
        if len(node.input) > 2 and node.input[2]:
            output = nodes[-1].output[0]
            plain, bias = editor.fresh(f"{output}_plain"), editor.fresh(f"{output}_bias")
            nodes[-1].output[0] = plain
            shape = editor.add(scope, f"{bias}_shape", np.array([-1] + [1] * (len(weight.tensor.dims) - 2), np.int64))
            nodes += [
                helper.make_node("Reshape", [node.input[2], shape], [bias], name=f"{bias}_reshape"),
                helper.make_node("Add", [plain, bias], [output], name=f"{bias}_add"),
            ]
        return nodes

    def rule(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        if is_standard(node, "MatMul"):
            return matmul(scope, node)
        if is_standard(node, "Conv"):
            return conv(scope, node)
        if tables and is_standard(node, "Gather"):
            return quantize_table(editor, scope, node, bits=8, block_size=None)
        return None

    editor.rewrite(rule)


def quantize_columns(weights: NDArray[np.float32], integers: Integers) -> Quantized:
    """A matrix [rows, columns] with one scale per column.

    Returns:
        uint8 or int8 values, float32 scales [columns], zero points [columns] of the values' type.
    """
    low = np.minimum(weights.min(axis=0, initial=0), 0).astype(np.float64)
    high = np.maximum(weights.max(axis=0, initial=0), 0).astype(np.float64)
    if integers.signed:
        scales = np.maximum(-low, high) / integers.highest
        zero_points = np.zeros(len(scales))
        bounds = (-integers.highest, integers.highest)
    else:
        scales = (high - low) / 255
        bounds = (0, 255)
        zero_points = np.round(-low / np.where(scales > 0, scales, 1))
    # What float32 cannot hold as a normal number counts as a column of zeros.
    empty = scales < np.finfo(np.float32).tiny
    scales = np.where(empty, 1, scales).astype(np.float32)
    zero_points = np.where(empty, 0, zero_points)
    dtype = np.int8 if integers.signed else np.uint8
    quantized = np.empty(weights.shape, dtype)
    for rows in row_blocks(weights):
        numbers = np.round(weights[rows] / scales)
        numbers += zero_points.astype(np.float32)
        np.clip(numbers, *bounds, out=numbers)
        quantized[rows] = numbers
    return quantized, scales, zero_points.astype(dtype)


def symmetric_columns(weights: NDArray[np.float32]) -> Quantized:
    """The numbers that a table gets whose transpose this matrix is, so that both are stored once."""
    packed, scales = quantize_rows(weights.T, 8, row_block_size(weights.shape[0]))
    values = packed.reshape(weights.shape[1], -1)[:, : weights.shape[0]].T
    return np.ascontiguousarray(values), scales.reshape(-1), np.full(weights.shape[1], MIDDLE, np.uint8)


def quantize_filters(weights: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Filters [channels, ...] with one scale per output channel around the zero point 128.

    The runtime takes a single zero point for all filters; one that is the same by construction lets every channel
    have its own scale.

    Returns:
        uint8 values, float32 scales [channels, 1, ...] that multiply an output [batch, channels, ...].
    """
    channels = weights.shape[0]
    flat = weights.reshape(channels, -1)
    largest = np.abs(flat).max(axis=1, initial=0).astype(np.float64)
    scales = largest / 127
    scales = np.where(scales < np.finfo(np.float32).tiny, 1, scales).astype(np.float32)
    quantized = np.empty(flat.shape, np.uint8)
    for rows in row_blocks(flat):
        numbers = np.round(flat[rows] / scales[rows, np.newaxis]) + np.float32(MIDDLE)
        quantized[rows] = np.clip(numbers, 0, 255)
    return quantized.reshape(weights.shape), scales.reshape(-1, *[1] * (weights.ndim - 2))


def _table_names(editor: Editor) -> set[str]:
    names = set()
    for scope in editor.scopes():
        for node in scope.graph.node:
            if is_standard(node, "Gather"):
                weight = find_weight(scope, node.input[0])
                if weight is not None and is_table(node, weight):
                    names.add(weight.tensor.name)
    return names
