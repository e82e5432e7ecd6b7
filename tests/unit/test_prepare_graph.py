"""ONNX files whose tensors are read when wanted: the same bytes as the onnx package, and nothing unsafe is read."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pywebml.errors import ConversionError, PrepareError, SourceError
from pywebml.prepare import graph as graph_module
from pywebml.prepare.graph import INLINE_BYTES, open_graph
from tests.onnx_models import branching_model, model_of, numbers, save, value

FOLDER_ONCE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool", "complex64")


def arrays() -> st.SearchStrategy[NDArray[Any]]:
    shapes = st.lists(st.integers(0, 24), max_size=3).map(tuple)
    return st.builds(
        lambda shape, dtype, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
        shapes,
        st.sampled_from(DTYPES),
        st.integers(0, 9),
    )


def constants_model(tensors: list[NDArray[Any]]) -> onnx.ModelProto:
    """A third of the tensors each as initializers, in Constant nodes, and as initializers of a branch."""
    nodes, initializers, inner = [], {}, []
    for index, array in enumerate(tensors):
        if index % 3 == 0:
            initializers[f"t{index}"] = array
        elif index % 3 == 1:
            nodes.append(helper.make_node("Constant", [], [f"t{index}"], value=numpy_helper.from_array(array)))
        else:
            inner.append(numpy_helper.from_array(array, f"t{index}"))
    branches = {
        name: helper.make_graph(
            [helper.make_node("Identity", ["x"], [name])], name, [], [value(name, None)], inner if index == 0 else []
        )
        for index, name in enumerate(("then_branch", "else_branch"))
    }
    nodes.append(helper.make_node("If", ["flag"], ["y"], **branches))
    return model_of(nodes, [value("flag", [], TensorProto.BOOL), value("x", [2])], [value("y", None)], initializers)


@FOLDER_ONCE
@given(st.lists(arrays(), max_size=7))
def test_what_is_written_unchanged_is_the_onnx_packages_own_bytes(tmp_path: Path, tensors: list[NDArray[Any]]) -> None:
    source = save(constants_model(tensors), tmp_path / "m.onnx")

    with open_graph(source) as graph:
        files = graph.write(tmp_path / "copy.onnx")

    assert files == [tmp_path / "copy.onnx"]
    assert files[0].read_bytes() == source.read_bytes()


@FOLDER_ONCE
@given(st.lists(arrays(), min_size=1, max_size=7))
def test_tensors_are_read_as_the_onnx_package_reads_them(tmp_path: Path, tensors: list[NDArray[Any]]) -> None:
    source = save(constants_model(tensors), tmp_path / "m.onnx")

    with open_graph(source) as graph:
        found = [graph.read(tensor) for tensor in graph.tensors()]

    whole = onnx.load(source)
    expected = [numpy_helper.to_array(tensor) for tensor in graph_module.tensors_of(whole)]
    assert len(found) == len(expected) == len(tensors)
    for left, right in zip(found, expected, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        np.testing.assert_array_equal(left, right)


def test_data_in_typed_fields_is_read_and_kept(tmp_path: Path) -> None:
    floats = helper.make_tensor("f", TensorProto.FLOAT, [40, 10], numbers(400))
    halves = helper.make_tensor("h", TensorProto.FLOAT16, [40, 20], numbers(800).astype(np.float16))
    longs = helper.make_tensor("l", TensorProto.INT64, [300], list(range(300)))
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", [1])], [value("y", [1])], {})
    model.graph.initializer.extend([floats, halves, longs])
    source = save(model, tmp_path / "m.onnx")

    with open_graph(source) as graph:
        graph.write(tmp_path / "copy.onnx")

    copied = onnx.load(tmp_path / "copy.onnx")
    for before, after in zip(model.graph.initializer, copied.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(after), numpy_helper.to_array(before))


def test_large_tensors_are_placeholders_and_small_ones_are_not(tmp_path: Path) -> None:
    source = save(branching_model(), tmp_path / "m.onnx")

    with open_graph(source) as graph:
        sizes = {
            tensor.name: (graph.size(tensor), tensor.data_location, len(tensor.raw_data)) for tensor in graph.tensors()
        }
        assert len(graph.model.SerializeToString()) < 2000

    assert sizes["w_then"] == (48 * 32 * 4, TensorProto.EXTERNAL, 0)
    assert sizes[""] == (32 * 4, TensorProto.DEFAULT, 32 * 4)
    assert max(size for size, location, _ in sizes.values() if location != TensorProto.EXTERNAL) < INLINE_BYTES


def test_replaced_tensors_are_written_with_their_new_type_and_shape(tmp_path: Path) -> None:
    source = save(branching_model(), tmp_path / "m.onnx")
    with open_graph(source) as graph:
        for tensor in graph.tensors():
            graph.replace(tensor, graph.read(tensor).astype(np.float16).reshape(-1, 2))
        graph.write(source)

    before, after = branching_model(), onnx.load(source)
    for old, new in zip(graph_module.tensors_of(before), graph_module.tensors_of(after), strict=True):
        expected = numpy_helper.to_array(old).astype(np.float16).reshape(-1, 2)
        np.testing.assert_array_equal(numpy_helper.to_array(new), expected)
        assert new.name == old.name


def test_packed_types_are_read_and_written(tmp_path: Path) -> None:
    nibbles = helper.make_tensor("n", TensorProto.UINT4, [3, 1001], list(np.arange(3003) % 16))
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", [1])], [value("y", [1])], {})
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(nibbles), "n"))
    source = save(model, tmp_path / "m.onnx")

    with open_graph(source) as graph:
        (tensor,) = graph.tensors()
        assert tensor.data_location == TensorProto.EXTERNAL
        np.testing.assert_array_equal(graph.read(tensor).astype(int).ravel(), np.arange(3003) % 16)
        graph.write(tmp_path / "copy.onnx")

    assert (tmp_path / "copy.onnx").read_bytes() == source.read_bytes()


def test_beyond_the_size_of_one_file_the_data_goes_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(branching_model(), tmp_path / "m.onnx")
    monkeypatch.setattr(graph_module, "MAX_FILE_BYTES", 10_000)

    with open_graph(source) as graph:
        files = graph.write(tmp_path / "copy.onnx")

    assert [file.name for file in files] == ["copy.onnx", "copy.onnx_data"]
    assert files[0].stat().st_size < 2000
    onnx.checker.check_model(files[0], full_check=True)
    loaded = onnx.load(files[0])
    for old, new in zip(graph_module.tensors_of(branching_model()), graph_module.tensors_of(loaded), strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(new), numpy_helper.to_array(old))


def test_data_beyond_four_gigabytes_is_read_by_position(tmp_path: Path) -> None:
    """A sparse file: what counts is that neither offsets nor memory stand in the way."""
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", [1])], [value("y", [1])], {})
    far = 4_500_000_000
    for name, offset in (("big", 0), ("last", far)):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[far // 4 if name == "big" else 1000])
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "m.bin"), ("offset", str(offset))):
            tensor.external_data.add(key=key, value=text)
        model.graph.initializer.append(tensor)
    with (tmp_path / "m.bin").open("wb") as file:
        file.seek(far)
        file.write(numbers(1000).tobytes())
    source = save(model, tmp_path / "m.onnx")

    with open_graph(source) as graph:
        big, last = graph.tensors()
        assert graph.size(big) == far
        np.testing.assert_array_equal(graph.read(last), numbers(1000))


def external_model(path: Path, **entries: str) -> Path:
    """`m.onnx` whose one tensor (4 kB) has external data with these entries."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1000], data_location=TensorProto.EXTERNAL)
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", [1])], [value("y", [1])], {})
    model.graph.initializer.append(tensor)
    return save(model, path)


@pytest.mark.parametrize(
    "location",
    [
        *("/etc/passwd", "../secret", "a/../../secret", "..", "", "C:\\secret", "..\\secret", "a\0b", "c:secret"),
        *("//server/share", "file:///etc/passwd"),
    ],
)
def test_locations_outside_of_the_folder_are_refused_by_name(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4000))
    external_model(folder / "m.onnx", location=location)

    with pytest.raises(SourceError, match="only names inside the model's folder") as caught:
        open_graph(folder / "m.onnx")

    assert caught.value.details == {"tensor": "w", "location": location}


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4000))
    (folder / "data").symlink_to(tmp_path / "secret")
    (folder / "link").symlink_to(tmp_path)

    for location in ("data", "link/secret"):
        with pytest.raises(SourceError, match="link out of the model's folder"):
            open_graph(external_model(folder / "m.onnx", location=location))

    (folder / "real").write_bytes(bytes(4000))
    (folder / "inside").symlink_to(folder / "real")
    open_graph(external_model(folder / "m.onnx", location="inside")).close()


def test_pipes_and_missing_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sub").mkdir()
    for location in ("pipe", "none", "sub"):
        with pytest.raises(SourceError, match=r"no such file beside m\.onnx"):
            open_graph(external_model(tmp_path / "m.onnx", location=location))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "97"}, "from byte 97 to 4097 of data, which has only 4096"),
        ({"offset": "99999999999999999999"}, "offset '99999999999999999999'"),
        ({"offset": "-4"}, "offset '-4'"),
        ({"offset": "1e3"}, "offset '1e3'"),
        ({"offset": "٣"}, "offset '٣'"),
        ({"length": "3999"}, "needs 4000 bytes, but its external data is said to have 3999"),
        ({"length": "4001"}, "said to have 4001"),
        ({"length": ""}, "length ''"),
    ],
)
def test_offsets_and_lengths_are_checked(tmp_path: Path, entries: dict[str, str], words: str) -> None:
    (tmp_path / "data").write_bytes(bytes(4096))
    external_model(tmp_path / "m.onnx", location="data", **entries)

    with pytest.raises(SourceError, match=words):
        open_graph(tmp_path / "m.onnx")


def test_external_data_that_ends_with_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data").write_bytes(bytes(96) + numbers(1000).tobytes())

    with open_graph(external_model(tmp_path / "m.onnx", location="sub/data", offset="96")) as graph:
        (tensor,) = graph.tensors()
        np.testing.assert_array_equal(graph.read(tensor), numbers(1000))


def test_a_tensor_whose_data_does_not_fit_its_shape_is_refused(tmp_path: Path) -> None:
    model = branching_model()
    model.graph.initializer[0].dims[0] += 1
    with pytest.raises(SourceError, match=r"'w_shared' of shape \[49, 32\] needs 6272 bytes, but m.onnx holds 6144"):
        open_graph(save(model, tmp_path / "m.onnx"))
    model.graph.initializer[0].dims[0] = -1
    with pytest.raises(SourceError, match="make no sense"):
        open_graph(save(model, tmp_path / "m.onnx"))


def test_graphs_too_deep_inside_each_other_are_refused(tmp_path: Path) -> None:
    field = b""
    for _ in range(400):
        for number in (6, 5, 1):
            size = len(field)
            length = bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14])
            field = bytes([number << 3 | 2]) + length + field
    size = len(field)
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes([7 << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + field)

    with pytest.raises(SourceError, match="deep inside each other"):
        open_graph(path)


@FOLDER_ONCE
@given(st.data())
def test_damaged_files_are_refused_or_read_but_nothing_else_happens(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(branching_model().SerializeToString(deterministic=True))
    cut = data.draw(st.integers(0, len(whole)), "cut")
    for _ in range(data.draw(st.integers(0, 4), "changes")):
        whole[data.draw(st.integers(0, len(whole) - 1), "at")] = data.draw(st.integers(0, 255), "byte")
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[:cut])

    with suppress(SourceError), open_graph(path) as graph:
        for tensor in graph.tensors():
            graph.read(tensor)
        graph.write(tmp_path / "copy.onnx")


@FOLDER_ONCE
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_or_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with suppress(SourceError):
        open_graph(path).close()


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(SourceError, match="There is no ONNX file"):
            open_graph(path)


def test_a_full_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(branching_model(), tmp_path / "m.onnx")
    before = source.read_bytes()
    original = Path.rename

    def fails_for_the_model(self: Path, target: Path) -> Path:
        if self.name.startswith("new") and target.name == "m.onnx":
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_model)
    with open_graph(source) as graph, pytest.raises(PrepareError, match="No space left on device"):
        graph.write(source, shard_bytes=4000)

    assert source.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".onnx")] == ["m.onnx"]


def test_a_graph_without_tensors_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_module, "MAX_FILE_BYTES", 100)
    source = save(branching_model(), tmp_path / "m.onnx")
    with open_graph(source) as graph, pytest.raises(ConversionError, match="without its external data"):
        graph.write(tmp_path / "copy.onnx")
    assert not (tmp_path / "copy.onnx").exists()
