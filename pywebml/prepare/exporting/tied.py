"""Tied weights, stored once: many models use their table of tokens a second time, transposed, to give logits.

The exporter knows no ties: it writes the transpose as a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir


def share_tied(model: onnx_ir.Model) -> int:
    """Put a `Transpose` of a table in place of every matrix that is one.

    The runtime computes it once, when it loads the file.

    Args:
        model: The model, changed in place.

    Returns:
        How many matrices are gone.
    """
    graph = model.graph
    tables = [value for value in graph.initializers.values() if _rank(value) == 2 and any(_users(value, "Gather", 0))]
    matrices = [value for value in graph.initializers.values() if _rank(value) == 2 and any(_users(value, "MatMul", 1))]
    shared = 0
    for matrix in matrices:
        table = next((table for table in tables if table is not matrix and _is_transpose(table, matrix)), None)
        if (
            matrix.name is None
            or table is None
            or any(True for node, index in matrix.uses() if (node.op_type, index) != ("MatMul", 1))
        ):
            continue
        users = list(_users(matrix, "MatMul", 1))
        transpose = onnx_ir.node("Transpose", [table], {"perm": [1, 0]})
        transpose.outputs[0].name = f"{table.name}.transposed_{shared}"
        # Users are in order, and the first is the one that needs it first.
        graph.insert_before(next(node for node in graph if node in users), transpose)
        for node in users:
            node.replace_input_with(1, transpose.outputs[0])
        del graph.initializers[matrix.name]
        shared += 1
    return shared


def _users(value: onnx_ir.Value, op_type: str, index: int) -> Iterator[onnx_ir.Node]:
    return (node for node, at in value.uses() if node.op_type == op_type and at == index)


def _rank(value: onnx_ir.Value) -> int:
    return 0 if value.const_value is None else len(value.const_value.shape)


def _is_transpose(table: onnx_ir.Value, matrix: onnx_ir.Value) -> bool:
    first, second = table.const_value, matrix.const_value
    if first is None or second is None or first.dtype != second.dtype:
        return False
    return first.shape.numpy()[::-1] == second.shape.numpy() and np.array_equal(first.numpy(), second.numpy().T)
