"""8-bit weights (`q8`) by ONNX Runtime's dynamic quantisation: activations are quantised while the model runs."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from pywebml.errors import ConversionError
from pywebml.prepare.export import check_versions, save_model
from pywebml.prepare.quiet import quiet

_QUANTIZED_OPERATORS = ("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "DynamicQuantizeLSTM")


def quantize_q8(source: Path, target: Path) -> int:
    """Write a copy of a model whose constant matrices have 8 bits per weight.

    Unsigned weights in the full range with one scale per channel: of the eight combinations the one that is nearly
    the most exact (all-MiniLM-L6-v2) and at the same time gives the same numbers on every processor. Signed weights
    saturate in products on x86 without VNNI unless their range is halved, and convolutions are slow with them.

    Returns:
        The number of nodes that compute with 8-bit weights.

    Raises:
        ConversionError: The quantiser failed, or found nothing to quantise.
    """
    try:
        with quiet():
            quantize_dynamic(
                source,
                target,
                weight_type=QuantType.QUInt8,
                per_channel=True,
                reduce_range=False,
                # A product of two activations has no weights to quantise.
                extra_options={"MatMulConstBOnly": True, "EnableSubgraph": True},
            )
    except Exception as error:
        raise ConversionError(f"ONNX Runtime cannot quantise this model: {error}") from error
    model = onnx.load(target)
    count = sum(node.op_type in _QUANTIZED_OPERATORS for node in model.graph.node)
    if count == 0:
        raise ConversionError("Quantising changed nothing: the graph has no product with a constant matrix.")
    check_versions(model)
    save_model(model, target)
    return count
