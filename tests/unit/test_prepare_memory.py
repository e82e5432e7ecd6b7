"""Quantising and splitting need memory for a few tensors, however many a model has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from pywebml.prepare.graph import open_graph
from tests.onnx_models import model_of, save, value
from web.build.paths import ROOT

WIDTH, LAYERS = 1024, 24
TENSOR_BYTES = WIDTH * 2 * WIDTH * 4
"""8 MiB; the large model has 192 MiB."""

MEASURE = """
import re, sys
from pathlib import Path
from pywebml.prepare.external_data import split
from pywebml.prepare.quantizing import quantize

def peak():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

small, large, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def work(path):
    if dtype == "split":
        split(path, 50_000_000)
    else:
        quantize(path, path.with_name(f"{path.stem}_{dtype}.onnx"), dtype)
# Whatever is loaded or set aside the first time does not count.
work(small)
before = peak()
work(large)
print(peak() - before)
"""


def chain(path: Path, layers: int, width: int = WIDTH) -> Path:
    """Products one after the other, written one tensor at a time."""
    nodes, last = [], "x"
    for index in range(layers):
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"wide{index}"]))
        nodes.append(helper.make_node("Slice", [f"wide{index}", "start", "end", "axis"], [f"h{index}"]))
        last = f"h{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    shape: list[str | int] = ["n", width]
    ends = {"start": np.array([0]), "end": np.array([width]), "axis": np.array([1])}
    model = model_of(nodes, [value("x", shape)], [value("y", shape)], ends)
    with open_graph(save(model, path)) as graph:
        for index in range(layers):
            rng = np.random.default_rng(index)
            weights = rng.standard_normal((width, 2 * width), np.float32)
            graph.model.graph.initializer.append(graph.make(f"w{index}", weights, data_type=TensorProto.FLOAT))
        graph.write(path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("memory")
    return chain(folder / "small.onnx", 1, 32), chain(folder / "large.onnx", LAYERS)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", ["q8", "q4", "fp16", "split"])
def test_memory_stays_near_a_few_tensors(models: tuple[Path, Path], dtype: str) -> None:
    small, large = models

    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large), dtype],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert result.returncode == 0, result.stderr
    growth = int(result.stdout)
    print(f"{dtype}: {growth / 2**20:.1f} MiB for {LAYERS} tensors of {TENSOR_BYTES >> 20} MiB each")
    assert TENSOR_BYTES / 8 < growth < 4 * TENSOR_BYTES
