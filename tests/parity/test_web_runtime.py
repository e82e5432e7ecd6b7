"""The helper itself: onnxruntime-web gives the numbers of the native runtime, and says what it refuses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tests.parity.web_runtime import (
    WebRuntime,
    WebRuntimeError,
    external_locations,
    run_in_web_runtime,
    shared_web_runtime,
)

ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int64": TensorProto.INT64,
    "int8": TensorProto.INT8,
    "bool": TensorProto.BOOL,
}


def save_identity(path: Path, dtype: str, rank: int) -> None:
    shape = [f"d{axis}" for axis in range(rank)]
    values = [helper.make_tensor_value_info(name, ELEMENT_TYPES[dtype], shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def save_product(path: Path, weights: NDArray[np.float32], **options: Any) -> None:
    rows, columns = weights.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save_model(model, path, **options)


@pytest.mark.parametrize("dtype", ELEMENT_TYPES)
@pytest.mark.parametrize("shape", [(2, 3), (0, 4), ()], ids=str)
def test_every_element_type_and_empty_tensors_come_back_as_they_went(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    save_identity(tmp_path / "same.onnx", dtype, len(shape))
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)

    back = run_in_web_runtime(tmp_path / "same.onnx", {"x": array})["y"]

    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_external_data_is_found_beside_the_model(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((8, 4), np.float32)
    save_product(tmp_path / "p.onnx", weights, save_as_external_data=True, location="p.onnx_data", size_threshold=0)
    x = np.random.default_rng(2).standard_normal((3, 8), np.float32)

    first, second = shared_web_runtime().run(tmp_path / "p.onnx", [{"x": x}, {"x": 2 * x}])

    assert external_locations(tmp_path / "p.onnx") == ["p.onnx_data"]
    np.testing.assert_allclose(first["y"], x @ weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second["y"], 2 * first["y"], rtol=1e-5, atol=1e-6)


def test_refusals_name_their_stage_and_the_runtime_goes_on(tmp_path: Path) -> None:
    weights = np.eye(2, dtype=np.float32)
    save_product(tmp_path / "p.onnx", weights)
    model = onnx.load(tmp_path / "p.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "unknown.onnx")

    with pytest.raises(WebRuntimeError, match=r"^load: .*NoSuchOperator"):
        run_in_web_runtime(tmp_path / "unknown.onnx", {"x": weights})
    with pytest.raises(WebRuntimeError, match=r"^run: "):
        run_in_web_runtime(tmp_path / "p.onnx", {"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_array_equal(run_in_web_runtime(tmp_path / "p.onnx", {"x": weights})["y"], weights)


def test_after_a_crash_the_next_run_starts_a_new_process(tmp_path: Path) -> None:
    weights = np.eye(2, dtype=np.float32)
    save_product(tmp_path / "p.onnx", weights)
    with WebRuntime() as runtime:
        runtime.run(tmp_path / "p.onnx", [{"x": weights}])
        assert runtime.process_id is not None
        os.kill(runtime.process_id, signal.SIGKILL)

        with pytest.raises(WebRuntimeError, match=r"^crash: the process ended with -9"):
            runtime.run(tmp_path / "p.onnx", [{"x": weights}])
        (outputs,) = runtime.run(tmp_path / "p.onnx", [{"x": weights}])

    np.testing.assert_array_equal(outputs["y"], weights)
    assert runtime.process_id is None
