"""External data: split and merged again a model is what it was, and every shard is what loaders expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from pywebml.errors import ConversionError, PrepareError, SourceError
from pywebml.prepare import graph as graph_module
from pywebml.prepare.external_data import merge, split
from pywebml.prepare.graph import open_graph
from tests.onnx_models import branching_model, model_of, numbers, save, value


def chain(sizes: list[int]) -> onnx.ModelProto:
    """`y = x + sum of the means of tensors` with so many float32 numbers."""
    weights = {f"w{index}": numbers(size, seed=index) for index, size in enumerate(sizes)}
    nodes, last = [], "x"
    for name in weights:
        nodes.append(helper.make_node("ReduceMean", [name], [f"{name}_mean"], keepdims=0))
        nodes.append(helper.make_node("Add", [last, f"{name}_mean"], [f"{name}_sum"]))
        last = f"{name}_sum"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    return model_of(nodes, [value("x", [1])], [value("y", [1])], weights)


def entries(path: Path) -> dict[str, dict[str, str]]:
    model = onnx.load(path, load_external_data=False)
    return {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in graph_module.tensors_of(model)
    }


def run(path: Path) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": np.ones(1, np.float32)})[0][0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 3000), max_size=12), st.integers(1, 20_000))
def test_split_and_merged_a_model_is_what_it_was(tmp_path: Path, sizes: list[int], limit: int) -> None:
    path = save(chain(sizes), tmp_path / "m.onnx")
    before = path.read_bytes()

    shards = split(path, limit)

    assert [shard.name for shard in shards] == [f"m.onnx_data{f'_{i}' if i else ''}" for i in range(len(shards))]
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["m.onnx", *(shard.name for shard in shards)])
    for name, found in entries(path).items():
        size = sizes[int(name[1:])] * 4
        assert bool(found) == (size >= 1024)
        if found:
            assert int(found["length"]) == size
            assert int(found["offset"]) % 64 == 0
            shard_size = (tmp_path / found["location"]).stat().st_size
            assert int(found["offset"]) + size <= shard_size
            assert shard_size <= limit or (shard_size == size and found["offset"] == "0")
    assert merge(path, path) == [path]
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_large_tensors_begin_at_pages_and_the_runtime_loads_them(tmp_path: Path) -> None:
    path = save(chain([300_000, 700, 300_000, 400_000, 100]), tmp_path / "m.onnx")
    expected = run(path)

    shards = split(path, 3_000_000)

    places = {name: (found["location"], int(found["offset"])) for name, found in entries(path).items() if found}
    assert places == {
        "w0": ("m.onnx_data", 0),
        "w1": ("m.onnx_data", 1_200_000),
        "w2": ("m.onnx_data", 1_204_224),
        "w3": ("m.onnx_data_1", 0),
    }
    assert [shard.stat().st_size for shard in shards] == [2_404_224, 1_600_000]
    assert run(path) == expected
    onnx.checker.check_model(path, full_check=True)


def test_lists_of_whole_numbers_stay_for_the_runtimes_shape_inference(tmp_path: Path) -> None:
    shape = np.ones(200, np.int64)
    model = model_of(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])], [value("x", [1])], [value("y", None)], {"shape": shape}
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(9000, np.int64), "many"))
    path = save(model, tmp_path / "m.onnx")

    split(path, 1_000_000)

    assert {name: bool(found) for name, found in entries(path).items()} == {"shape": False, "many": True}


def test_tensors_of_branches_are_split_too(tmp_path: Path) -> None:
    path = save(branching_model(), tmp_path / "m.onnx")

    split(path, 7000)

    assert {name: found.get("location") for name, found in entries(path).items()} == {
        "w_else": "m.onnx_data",
        "w_then": "m.onnx_data_1",
        "w_shared": "m.onnx_data_2",
        "": None,
    }


def test_a_split_model_is_split_anew_and_old_shards_go(tmp_path: Path) -> None:
    path = save(chain([1000] * 6), tmp_path / "m.onnx")
    expected = run(path)
    assert len(split(path, 4000)) == 6

    assert len(split(path, 9000)) == 3

    assert len(list(tmp_path.iterdir())) == 4
    assert run(path) == expected


def test_other_names_of_external_data_are_read_and_left(tmp_path: Path) -> None:
    onnx.save_model(
        chain([1000, 2000]), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    expected = run(tmp_path / "m.onnx")

    (target,) = merge(tmp_path / "m.onnx", tmp_path / "merged.onnx")

    assert run(target) == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "merged.onnx", "weights.bin"]


def test_merging_what_is_too_large_gives_one_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(chain([1000] * 6), tmp_path / "m.onnx")
    expected = run(path)
    split(path, 4000)
    monkeypatch.setattr(graph_module, "MAX_FILE_BYTES", 10_000)

    assert [file.name for file in merge(path, path)] == ["m.onnx", "m.onnx_data"]

    assert len(list(tmp_path.iterdir())) == 2
    assert run(path) == expected


def test_more_than_a_hundred_shards_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = save(chain([300] * 101), tmp_path / "m.onnx")
    before = path.read_bytes()

    with pytest.raises(ConversionError, match=r"m.onnx would need more than 100 files of 1200 bytes.*larger limit"):
        split(path, 1200)

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert len(split(path, 2500)) == 51


def test_a_limit_that_is_no_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="at 0 bytes"):
        split(save(chain([1000]), tmp_path / "m.onnx"), 0)


def test_a_missing_or_short_shard_is_named(tmp_path: Path) -> None:
    path = save(chain([1000] * 3), tmp_path / "m.onnx")
    split(path, 4000)
    (tmp_path / "m.onnx_data_1").write_bytes(bytes(3000))
    with pytest.raises(SourceError, match=r"byte 0 to 4000 of m.onnx_data_1, which has only 3000"):
        merge(path, tmp_path / "merged.onnx")
    (tmp_path / "m.onnx_data_1").unlink()
    with pytest.raises(SourceError, match=r"'m\.onnx_data_1', and there is no such file"):
        merge(path, tmp_path / "merged.onnx")
    assert not (tmp_path / "merged.onnx").exists()


def test_a_disk_that_fails_between_two_renames_leaves_the_old_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(chain([1000] * 3), tmp_path / "m.onnx")
    split(path, 4000)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    original = Path.rename

    def fails_for_the_second(self: Path, target: Path) -> Path:
        if self.name == "new1":
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_second)
    with pytest.raises(PrepareError, match="Input/output error"):
        split(path, 8000)

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_same_model_gives_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = save(chain([5000, 10, 700]), tmp_path / name / "m.onnx")
        with open_graph(path) as graph:
            files = graph.write(path, shard_bytes=10_000)
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
