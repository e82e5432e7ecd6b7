"""Gemm as MatMul and Add, since only products have a form with quantised weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto, helper

from pywebml.prepare.quantizing.editing import Editor, Scope, attribute, find_weight, is_float_matrix, is_standard


def split_gemm(editor: Editor) -> None:
    """Write every Gemm with a constant matrix as `Add(MatMul(a, b), c)`, with factors and transposes where it has them.

    A transpose of the constant stays a node here; whoever quantises the product looks through it.
    """

    def rule(scope: Scope, node: NodeProto) -> list[NodeProto] | None:
        if not is_standard(node, "Gemm"):
            return None
        weight = find_weight(scope, node.input[1])
        if weight is None or not is_float_matrix(weight):
            return None
        nodes: list[NodeProto] = []

        def step(op_type: str, *inputs: str, **attributes: Any) -> str:
            output = editor.fresh(f"{node.output[0]}_{op_type.lower()}")
            nodes.append(helper.make_node(op_type, inputs, [output], name=editor.fresh(f"{output}_node"), **attributes))
            return output

        def scaled(name: str, factor: float, what: str) -> str:
            if factor == 1:
                return name
            return step("Mul", name, editor.add(scope, f"{node.output[0]}_{what}", np.array(factor, np.float32)))

        left, right = node.input[0], node.input[1]
        if attribute(node, "transA", 0):
            left = step("Transpose", left, perm=[1, 0])
        if attribute(node, "transB", 0):
            right = step("Transpose", right, perm=[1, 0])
        result = scaled(step("MatMul", left, right), attribute(node, "alpha", 1.0), "alpha")
        if len(node.input) > 2 and node.input[2]:
            step("Add", result, scaled(node.input[2], attribute(node, "beta", 1.0), "beta"))
        nodes[-1].output[0] = node.output[0]
        return nodes

    editor.rewrite(rule)
