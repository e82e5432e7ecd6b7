"""NF4, the 4-bit numbers of bitsandbytes: 16 fixed values, close together around zero, times a scale per block.

`MatMul` becomes MatMulBnb4. There is no such form of a lookup, so tables get the blocks of `q4`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from pywebml.prepare.quantizing.blocks import BLOCK_SIZE as TABLE_BLOCK_SIZE
from pywebml.prepare.quantizing.blocks import product_weight, quantize_table
from pywebml.prepare.quantizing.editing import CONTRIB, Editor, Scope, find_weight, is_standard

BLOCK_SIZE = 64
NF4 = 1
"""Number of the type in the operator's attribute."""

VALUES = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""Quantiles of the normal distribution (Dettmers et al. 2023, QLoRA, appendix E)."""
ZERO = 7
"""Which of them is 0."""
BOUNDS = np.array(
    [
        *(-0.84809643, -0.6106329, -0.45999527, -0.33967942, -0.2346074),
        *(-0.13791174, -0.045525018, 0.03979015, 0.120255254, 0.20352125),
        *(0.29201376, 0.38931254, 0.5016634, 0.6427869, 0.8614784),
    ],
    np.float32,
)
"""Above each of these the next value is nearer; to the last bit where ONNX Runtime has them."""


def quantize_bnb4(editor: Editor, *, tables: bool) -> None:
    """Rewrite all products and, if wished, tables with constant float32 weights."""
    editor.use_contrib()

    def rule(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        if is_standard(node, "Gather") and tables:
            return quantize_table(editor, scope, node, 4, TABLE_BLOCK_SIZE)
        if is_standard(node, "Conv"):
            filters = find_weight(scope, node.input[1])
            if filters is not None:
                editor.left(filters, "Conv has no NF4 form")
        if not is_standard(node, "MatMul"):
            return None
        weight = product_weight(editor, scope, node, "NF4")
        if weight is None:
            return None
        inner, columns = weight.shape

        def make() -> tuple[str, ...]:
            packed, scales = quantize_nf4(editor.read(weight).T, BLOCK_SIZE)
            return (
                editor.add(weight.scope, f"{weight.tensor.name}_nf4", packed),
                editor.add(weight.scope, f"{weight.tensor.name}_absmax", scales),
            )

        names = editor.once(weight, "nf4", make)
        editor.count += 1
        return [
            helper.make_node(
                "MatMulBnb4",
                [node.input[0], *names],
                node.output,
                name=f"{node.name}_nf4" if node.name else "",
                domain=CONTRIB,
                K=inner,
                N=columns,
                block_size=BLOCK_SIZE,
                quant_type=NF4,
            )
        ]

    editor.rewrite(rule)


def quantize_nf4(weights: NDArray[np.float32], block_size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A matrix in blocks of consecutive numbers, whatever row they lie in.

    Args:
        weights: [rows, width], rows being the outputs of the product.
        block_size: Numbers per scale.

    Returns:
        uint8 [(rows * width + 1) // 2], the first of two numbers in the high bits, and float32 scales [blocks].
    """
    total = weights.size
    blocks = -(-total // block_size)
    packed = np.zeros((total + 1) // 2, np.uint8)
    scales = np.empty(blocks, np.float32)
    flat = np.ascontiguousarray(weights).reshape(-1)
    # An even number of numbers, so that no byte lies in two parts.
    step = block_size * max(2, (1 << 18) // block_size)
    for start in range(0, total, step):
        part = flat[start : start + step]
        count = -(-len(part) // block_size)
        numbers = np.zeros((count, block_size), np.float32)
        numbers.reshape(-1)[: len(part)] = part
        largest = np.abs(numbers).max(axis=1)
        scales[start // block_size : start // block_size + count] = largest
        with np.errstate(divide="ignore", over="ignore"):
            factor = np.float32(1) / largest
        factor[~np.isfinite(factor)] = 0
        indices = np.searchsorted(BOUNDS, (numbers * factor[:, np.newaxis]).reshape(-1)[: len(part)], side="left")
        nibbles = np.full(len(part) + len(part) % 2, ZERO, np.uint8)
        nibbles[: len(part)] = indices
        packed[start // 2 : start // 2 + len(nibbles) // 2] = nibbles[0::2] << np.uint8(4) | nibbles[1::2]
    return packed, scales
