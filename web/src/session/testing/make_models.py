"""Writes the small models of the session worker's tests: `make_models.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 9

TYPES = {
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

Value = onnx.ValueInfoProto


def value(name: str, element_type: int, shape: list[int | str | None]) -> Value:
    """An input or output."""
    return helper.make_tensor_value_info(name, element_type, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[Value],
    outputs: list[Value],
    initializers: list[onnx.TensorProto] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def external_tensor(name: str, array: np.ndarray, location: str, offset: int) -> onnx.TensorProto:
    """An initializer whose bytes are in another file."""
    tensor = numpy_helper.from_array(array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location, "offset": str(offset), "length": str(array.nbytes)}
    for key, text in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return tensor


def main(folder: Path) -> None:
    """Write all models into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, onnx.ModelProto] = {}

    for name, element_type in TYPES.items():
        shape: list[int | str | None] = ["rows", "columns"]
        made[f"identity_{name}"] = model(
            [helper.make_node("Identity", ["x"], ["y"])],
            [value("x", element_type, shape)],
            [value("y", element_type, shape)],
        )

    made["scalar"] = model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [value("x", TensorProto.FLOAT, [])],
        [value("y", TensorProto.FLOAT, [])],
    )
    made["shapes"] = model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["a", "b"], ["product"])],
        [value("a", TensorProto.FLOAT, ["batch_size", 3]), value("b", TensorProto.FLOAT, [None, 3])],
        [
            value("sum", TensorProto.FLOAT, ["batch_size", 3]),
            value("product", TensorProto.FLOAT, ["batch_size", 3]),
        ],
    )
    # The output is the input itself, not a copy.
    made["through"] = model([], [value("x", TensorProto.FLOAT, ["n"])], [value("x", TensorProto.FLOAT, ["n"])])
    made["gather"] = model(
        [helper.make_node("Gather", ["x", "index"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n"]), value("index", TensorProto.INT64, ["m"])],
        [value("y", TensorProto.FLOAT, ["m"])],
    )
    made["zeros"] = model(
        [helper.make_node("ConstantOfShape", ["shape"], ["y"])],
        [value("shape", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )

    # Three tensors in one external file; the tests cut it so that cuts fall inside tensors.
    location = "external.onnx_data"
    generator = np.random.default_rng(1)
    weights = [generator.standard_normal(shape, dtype=np.float32) for shape in ((64, 64), (64, 64), (64,))]
    offsets = [0, 64 * 64 * 4, 2 * 64 * 64 * 4]
    made["external"] = model(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"]),
            helper.make_node("MatMul", ["h", "w2"], ["p"]),
            helper.make_node("Add", ["p", "bias"], ["y"]),
        ],
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 64])],
        [
            external_tensor(name, array, location, offset)
            for name, array, offset in zip(("w1", "w2", "bias"), weights, offsets, strict=True)
        ],
    )
    (folder / location).write_bytes(b"".join(array.tobytes() for array in weights))
    inputs = np.arange(64, dtype=np.float32)[np.newaxis] / 64
    expected = inputs @ weights[0] @ weights[1] + weights[2]
    (folder / "external.expected").write_bytes(expected.astype(np.float32).tobytes())

    # A table of 20 MiB behind one odd number, so that no read of it begins or ends where a piece of the file does.
    table = np.arange(5 * 1024 * 1024, dtype=np.float32).reshape(5120, 1024)
    made["table"] = model(
        [helper.make_node("Gather", ["table", "index"], ["row"]), helper.make_node("Add", ["row", "one"], ["y"])],
        [value("index", TensorProto.INT64, ["n"])],
        [value("y", TensorProto.FLOAT, ["n", 1024])],
        [
            external_tensor("one", np.ones(1, dtype=np.float32), "table.onnx_data", 0),
            external_tensor("table", table, "table.onnx_data", 4),
        ],
    )
    (folder / "table.onnx_data").write_bytes(np.ones(1, dtype=np.float32).tobytes() + table.tobytes())

    for name, proto in made.items():
        (folder / f"{name}.onnx").write_bytes(proto.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
