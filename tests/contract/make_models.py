"""Tiny ONNX models for `session_contract.py`; the same bytes every time.

python tests/contract/make_models.py build/contract-models
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "string": TensorProto.STRING,
    "bool": TensorProto.BOOL,
    "float16": TensorProto.FLOAT16,
    "float64": TensorProto.DOUBLE,
    "uint32": TensorProto.UINT32,
    "uint64": TensorProto.UINT64,
}


def value(name: str, element_type: int, *shape: int | str | None) -> Any:
    return helper.make_tensor_value_info(name, element_type, list(shape))


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: tuple[Any, ...] = ()) -> Any:
    graph = helper.make_graph(nodes, "contract", inputs, outputs, initializer=list(weights))
    return helper.make_model(graph, producer_name="pywebml", ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def identity(element_type: int) -> Any:
    """y = x, with one dynamic dimension."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", element_type, "batch_size", 2)],
        [value("y", element_type, "batch_size", 2)],
    )


def arithmetic() -> Any:
    """sum = a + b, product = a * b."""
    shape = ("batch_size", "sequence_length")
    return model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])],
        [value("a", TensorProto.FLOAT, *shape), value("b", TensorProto.FLOAT, *shape)],
        [value("sum", TensorProto.FLOAT, *shape), value("product", TensorProto.FLOAT, *shape)],
    )


def cache() -> Any:
    """present = past with x behind it, as a key-value cache grows."""
    return model(
        [
            helper.make_node("Concat", ["past", "x"], ["present"], axis=0),
            helper.make_node("ReduceSum", ["present"], ["total"], keepdims=0),
        ],
        [value("past", TensorProto.FLOAT, "past_length", 2), value("x", TensorProto.FLOAT, "length", 2)],
        [value("present", TensorProto.FLOAT, "total_length", 2), value("total", TensorProto.FLOAT)],
    )


def scalar() -> Any:
    """y = x, without dimensions."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT)],
        [value("y", TensorProto.FLOAT)],
    )


def gather() -> Any:
    """y = table[index], which fails for an index outside the table."""
    table = numpy_helper.from_array(np.arange(4, dtype=np.float32), "table")
    return model(
        [helper.make_node("Gather", ["table", "index"], ["y"])],
        [value("index", TensorProto.INT64, "count")],
        [value("y", TensorProto.FLOAT, "count")],
        (table,),
    )


def endless() -> Any:
    """y = x + 1, `rounds` times: runs as long as a test needs it to."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["condition"], ["condition_out"]),
            helper.make_node("Add", ["state", "one"], ["state_out"]),
        ],
        "body",
        [
            value("round", TensorProto.INT64),
            value("condition", TensorProto.BOOL),
            value("state", TensorProto.FLOAT, 2),
        ],
        [value("condition_out", TensorProto.BOOL), value("state_out", TensorProto.FLOAT, 2)],
    )
    one = numpy_helper.from_array(np.ones(2, dtype=np.float32), "one")
    return model(
        [helper.make_node("Loop", ["rounds", "", "x"], ["y"], body=body)],
        [value("rounds", TensorProto.INT64), value("x", TensorProto.FLOAT, 2)],
        [value("y", TensorProto.FLOAT, 2)],
        (one,),
    )


def external(location: str) -> tuple[Any, bytes]:
    """y = x @ w, where w stands in another file."""
    data = np.arange(512 * 4, dtype=np.float32).reshape(512, 4)
    weight = numpy_helper.from_array(data, "w")
    set_external_data(weight, location, offset=0, length=data.nbytes)
    made = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", TensorProto.FLOAT, "batch_size", 512)],
        [value("y", TensorProto.FLOAT, "batch_size", 4)],
        (weight,),
    )
    made.graph.initializer[0].ClearField("raw_data")
    return made, data.tobytes()


def unknown_operator() -> Any:
    """Well-formed, but no runtime has this operator."""
    return model(
        [helper.make_node("NoSuchOperator", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, 2)],
        [value("y", TensorProto.FLOAT, 2)],
    )


def make_models() -> dict[str, bytes]:
    """File name to bytes."""
    made = {f"identity_{name}.onnx": identity(kind) for name, kind in ELEMENT_TYPES.items()}
    made |= {
        "arithmetic.onnx": arithmetic(),
        "cache.onnx": cache(),
        "scalar.onnx": scalar(),
        "gather.onnx": gather(),
        "endless.onnx": endless(),
        "unknown_operator.onnx": unknown_operator(),
    }
    files = {name: proto.SerializeToString(deterministic=True) for name, proto in made.items()}
    proto, data = external("external.onnx_data")
    files["external.onnx"] = proto.SerializeToString(deterministic=True)
    files["external.onnx_data"] = data
    files["truncated.onnx"] = files["arithmetic.onnx"][: len(files["arithmetic.onnx"]) // 2]
    files["garbage.onnx"] = b"This is no model. " * 64
    return files


def write_models(folder: Path) -> None:
    """Write all models into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in make_models().items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    write_models(Path(sys.argv[1]))
