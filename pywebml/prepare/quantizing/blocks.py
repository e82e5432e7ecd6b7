"""2, 4 and 8 bits per weight in blocks with one scale each; activations stay in float.

`MatMul` becomes MatMulNBits and `Gather` from a table GatherBlockQuantized. Both store a block along the inner
dimension of the product in the same bytes, so a table that is also the last matrix of a decoder is stored once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from pywebml.prepare.quantizing.editing import CONTRIB, Editor, Scope, Weight, attribute, find_weight, is_standard

BLOCK_SIZE = 32
SMALLEST_TABLE = 1024
"""Bytes; smaller tables are no weights."""


def quantize_blocks(editor: Editor, bits: int, *, tables: bool, block_size: int = BLOCK_SIZE) -> None:
    """Rewrite all products and, if wished, tables with constant float32 weights."""
    editor.use_contrib()

    def matmul(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        weight = product_weight(editor, scope, node, f"{bits}-bit")
        if weight is None:
            return None
        inner, columns = weight.shape

        def make() -> tuple[str, ...]:
            packed, scales = quantize_rows(editor.read(weight).T, bits, block_size)
            return (
                editor.add(weight.scope, f"{weight.tensor.name}_q{bits}", packed),
                editor.add(weight.scope, f"{weight.tensor.name}_scales", scales),
            )

        names = editor.once(weight, ("product", bits, block_size), make)
        editor.count += 1
        return [
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *names],
                node.output,
                name=f"{node.name}_q{bits}" if node.name else "",
                domain=CONTRIB,
                K=inner,
                N=columns,
                bits=bits,
                block_size=block_size,
            )
        ]

    def rule(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        if is_standard(node, "MatMul"):
            return matmul(scope, node)
        if is_standard(node, "Gather"):
            return quantize_table(editor, scope, node, bits, block_size) if tables else None
        if is_standard(node, "Conv"):
            weight = find_weight(scope, node.input[1])
            if weight is not None:
                editor.left(weight, f"Conv has no {bits}-bit form")
        return None

    editor.rewrite(rule)


def product_weight(editor: Editor, scope: Scope, node: NodeProto, form: str) -> Weight | None:
    """The constant float32 matrix on the right of a product; why there is none is noted."""
    weight = find_weight(scope, node.input[1])
    if weight is None:
        left = find_weight(scope, node.input[0])
        if left is not None:
            editor.left(left, f"a product with the constant on the left has no {form} form")
        return None
    if weight.tensor.data_type != TensorProto.FLOAT:
        return None
    if len(weight.tensor.dims) != 2:
        editor.left(weight, f"a product of {len(weight.tensor.dims)} dimensions has no {form} form")
        return None
    return weight


def is_table(node: NodeProto, weight: Weight) -> bool:
    """Whether a Gather looks up rows of a float32 matrix that is worth quantising."""
    return (
        weight.tensor.data_type == TensorProto.FLOAT
        and len(weight.tensor.dims) == 2
        and not weight.transposed
        and weight.tensor.dims[0] * weight.tensor.dims[1] * 4 >= SMALLEST_TABLE
        and attribute(node, "axis", 0) == 0
    )


def quantize_table(
    editor: Editor, scope: Scope, node: NodeProto, bits: int, block_size: int | None
) -> list[NodeProto] | None:
    """A lookup of rows as GatherBlockQuantized; None when it is none or stays in float.

    Args:
        editor: Of the model.
        scope: Of the node.
        node: A Gather.
        bits: 2, 4 or 8.
        block_size: Numbers per scale; None: one scale per row.
    """
    weight = find_weight(scope, node.input[0])
    if weight is None or not is_table(node, weight):
        return None
    rows, width = weight.shape
    if width * bits % 8:
        editor.left(weight, f"rows of {width} numbers fill no whole bytes at {bits} bits")
        return None
    size = block_size or row_block_size(width)

    def make() -> tuple[str, ...]:
        packed, scales = quantize_rows(editor.read(weight), bits, size)
        packed = packed.reshape(rows, -1)[:, : width * bits // 8]
        return (
            editor.add(weight.scope, f"{weight.tensor.name}_table_q{bits}", packed),
            editor.add(weight.scope, f"{weight.tensor.name}_table_scales", scales),
        )

    names = editor.once(weight, ("table", bits, size), make)
    editor.use_contrib()
    editor.count += 1
    return [
        helper.make_node(
            "GatherBlockQuantized",
            [names[0], node.input[1], names[1]],
            node.output,
            name=f"{node.name}_q{bits}" if node.name else "",
            domain=CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=size,
            bits=bits,
        )
    ]


def quantize_rows(
    weights: NDArray[np.float32], bits: int, block_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Every row in blocks around the middle of the range, packed with the first number in the lowest bits.

    The number of largest magnitude in a block becomes 0, the end of the range that reaches further from its middle.

    Args:
        weights: [rows, width].
        bits: 2, 4 or 8.
        block_size: A power of two, at least 16.

    Returns:
        uint8 [rows, blocks, block_size * bits / 8], and float32 scales [rows, blocks].
    """
    rows, width = weights.shape
    blocks = -(-width // block_size)
    middle, highest = 1 << (bits - 1), (1 << bits) - 1
    packed = np.empty((rows, blocks, block_size * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    for part in row_blocks(weights):
        numbers = np.zeros((len(weights[part]), blocks * block_size), np.float32)
        numbers[:, :width] = weights[part]
        numbers = numbers.reshape(-1, blocks, block_size)
        low, high = numbers.min(axis=2), numbers.max(axis=2)
        extreme = np.where(np.abs(high) > np.abs(low), high, low)
        scale = extreme / np.float32(-middle)
        # Of scales below the normal numbers the reciprocal is infinite; such a block counts as zeros.
        with np.errstate(divide="ignore", over="ignore"):
            factor = np.float32(1) / scale
        factor[~np.isfinite(factor)] = 0
        numbers *= factor[..., np.newaxis]
        numbers += np.float32(middle)
        whole = round_half_away(numbers)
        np.clip(whole, 0, highest, out=whole)
        # Behind the last byte of a row the runtime's own quantiser leaves zero bits.
        whole.reshape(len(whole), -1)[:, -(-width * bits // 8) * 8 // bits :] = 0
        scales[part] = scale
        packed[part] = pack(whole.astype(np.uint8), bits)
    return packed, scales


def row_block_size(width: int) -> int:
    """The smallest block that holds a whole row."""
    return max(16, 1 << (width - 1).bit_length())


def pack(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Small numbers along the last axis into bytes, the first one in the lowest bits."""
    per_byte = 8 // bits
    packed = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // per_byte), np.uint8)
    for index in range(per_byte):
        packed |= numbers[..., index::per_byte] << np.uint8(bits * index)
    return packed


def round_half_away(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """To the nearest whole number, halves away from zero, as C's `roundf` does."""
    whole = np.trunc(numbers)
    whole += np.copysign(np.abs(numbers - whole) >= np.float32(0.5), numbers)
    return whole


def row_blocks(array: NDArray[Any], numbers: int = 1 << 18) -> list[slice]:
    """Slices of the first axis that hold about so many numbers each, so that temporary arrays stay small."""
    rows = max(1, numbers // max(1, array[:1].size))
    return [slice(start, start + rows) for start in range(0, len(array), rows)]
