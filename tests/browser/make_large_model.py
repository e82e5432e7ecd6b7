"""Writes a model with a little over 1 GiB of external data, for `memory.spec.ts`.

python -m tests.browser.make_large_model build/memory-model

The weights are small whole numbers that repeat, so that they are quick to write and float32 adds them without rounding,
while a slice of them in the wrong place gives other sums:

    table      float32[65536, 1024]        table[r, c] = (r + c) % 251; 256 MiB
    weight_i   float32[513, 1024], 384 ×   weight_i[r, c] = (7 i + r + c) % 31; 2 MiB and 4 KiB each, so that most of
                                           them cross the pieces that a store keeps

    rows           float32[n, 1024]   the rows `index` of the table
    table_sums     float32[65536]     the sum of each row of the table
    weight_sums    float32[196992]    the sums of each row of all other weights, one weight after the other

`axes` must be [1]. It is an input so that the runtime does not compute the sums while it loads.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

COLUMNS = 1024
TABLE_ROWS = 65536
TABLE_PERIOD = 251
WEIGHTS = 384
WEIGHT_ROWS = 513
WEIGHT_PERIOD = 31
ROW_BYTES = 4 * COLUMNS
DATA = "model.onnx_data"
DATA_BYTES = (TABLE_ROWS + WEIGHTS * WEIGHT_ROWS) * ROW_BYTES

ROOM = 3 * DATA_BYTES
"""Free disk that the test needs besides this file, in bytes: for what the browser stores, and on its way there."""


def main(folder: Path) -> None:
    """Write what is missing. Says so and exits when the disk has no room."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / DATA
    present = target.exists() and target.stat().st_size == DATA_BYTES
    needed = ROOM if present else ROOM + DATA_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        sys.exit(f"The memory test needs {needed / 1e9:.1f} GB of free disk, but {folder} has {free / 1e9:.1f} GB.")
    if not present:
        write_data(target)
    (folder / "model.onnx").write_bytes(make_model().SerializeToString(deterministic=True))


def write_data(target: Path) -> None:
    draft = target.with_suffix(".draft")
    with draft.open("wb") as file:
        write_rows(file, TABLE_PERIOD, 0, TABLE_ROWS)
        for index in range(WEIGHTS):
            write_rows(file, WEIGHT_PERIOD, 7 * index, WEIGHT_ROWS)
    draft.rename(target)


def write_rows(file: BinaryIO, period: int, first: int, count: int) -> None:
    """Rows whose element (r, c) is (first + r + c) % period."""
    start = np.arange(period)[:, np.newaxis]
    block: NDArray[np.float32] = ((first + start + np.arange(COLUMNS)) % period).astype(np.float32)
    data = block.tobytes()
    whole, rest = divmod(count, period)
    for _ in range(whole):
        file.write(data)
    file.write(data[: rest * ROW_BYTES])


def make_model() -> onnx.ModelProto:
    weights = [f"weight_{index}" for index in range(WEIGHTS)]
    initializers = [external("table", TABLE_ROWS, 0)]
    for index, name in enumerate(weights):
        initializers.append(external(name, WEIGHT_ROWS, (TABLE_ROWS + index * WEIGHT_ROWS) * ROW_BYTES))
    sums = [f"{name}_sums" for name in weights]
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("ReduceSum", ["table", "axes"], ["table_sums"], keepdims=0),
        *(
            helper.make_node("ReduceSum", [name, "axes"], [output], keepdims=0)
            for name, output in zip(weights, sums, strict=True)
        ),
        helper.make_node("Concat", sums, ["weight_sums"], axis=0),
    ]
    inputs = [
        helper.make_tensor_value_info("index", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info("axes", TensorProto.INT64, [1]),
    ]
    outputs = [
        helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", COLUMNS]),
        helper.make_tensor_value_info("table_sums", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("weight_sums", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "large", inputs, outputs, initializers)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def external(name: str, rows: int, offset: int) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[rows, COLUMNS])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": DATA, "offset": str(offset), "length": str(rows * ROW_BYTES)}.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return tensor


if __name__ == "__main__":
    main(Path(sys.argv[1]))
