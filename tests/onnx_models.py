"""Small ONNX models for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 18, 10
Arrays = Mapping[str, NDArray[Any]]


def value(name: str, shape: Sequence[str | int] | None, element_type: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Arrays,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model whose graph has these nodes; initializers by name."""
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def branch(nodes: Sequence[onnx.NodeProto], output: onnx.ValueInfoProto, initializers: Arrays) -> onnx.GraphProto:
    """A graph without inputs, for an attribute of If."""
    tensors = [numpy_helper.from_array(array, name) for name, array in initializers.items()]
    return helper.make_graph(nodes, output.name, [], [output], tensors)


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def numbers(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def branching_model(rows: int = 48, columns: int = 32) -> onnx.ModelProto:
    """`y = x @ w_shared + (x @ w_then + b if flag else x @ w_else)`: weights inside and outside of branches."""
    then = branch(
        [
            helper.make_node("MatMul", ["x", "w_then"], ["then_product"]),
            helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(numbers(columns, seed=1))),
            helper.make_node("Add", ["then_product", "b"], ["then_out"]),
        ],
        value("then_out", ["n", columns]),
        {"w_then": numbers(rows, columns, seed=2)},
    )
    otherwise = branch(
        [helper.make_node("MatMul", ["x", "w_else"], ["else_out"])],
        value("else_out", ["n", columns]),
        {"w_else": numbers(rows, columns, seed=3)},
    )
    return model_of(
        [
            helper.make_node("MatMul", ["x", "w_shared"], ["shared"]),
            helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=otherwise),
            helper.make_node("Add", ["shared", "chosen"], ["y"]),
        ],
        [value("x", ["n", rows]), value("flag", [1], TensorProto.BOOL)],
        [value("y", ["n", columns])],
        {"w_shared": numbers(rows, columns, seed=4)},
    )
