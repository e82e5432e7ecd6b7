"""8-bit weights (`q8`)."""

from __future__ import annotations

from pathlib import Path

import onnx

from pywebml.prepare.quantizing import quantize


def quantize_q8(source: Path, target: Path) -> int:
    """Write a copy of a model whose constant matrices have 8 bits per weight.

    Returns:
        The number of products and convolutions that compute with 8-bit weights.

    Raises:
        ConversionError: There was nothing to quantise.
    """
    quantize(source, target, "q8")
    model = onnx.load(target, load_external_data=False)
    return sum(node.op_type in ("MatMulInteger", "ConvInteger") for node in model.graph.node)
