"""`pywebml inspect`: files, folders and addresses; what is transferred; what is found wrong; what is printed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save, save_file

from pywebml.cli import main
from pywebml.errors import HubError, InspectionError, StoreError
from pywebml.inspecting import OnnxFile, SafetensorsFile, inspect_url, inspect_what_is_here
from pywebml.inspecting import files as reader
from pywebml.platform import set_platform
from pywebml.platform.native import NativePlatform
from pywebml.prepare.layout import write_manifest
from tests.faults.server import FaultServer
from tests.tiny_model import TinyModel

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12\n"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYWEBML_CACHE_DIR", str(tmp_path / "cache"))
    yield
    set_platform(None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in hub layout with external data and a manifest."""
    folder = tmp_path / "model"
    TinyModel(external_data=True).write(folder)
    return folder


def large_onnx() -> bytes:
    """Many constants, most of them large: about 12 MB."""
    random = np.random.default_rng(0)
    weights = {f"w{index}": random.random((300, 1000), np.float32) for index in range(10)}
    nodes = [helper.make_node("Add", [f"x{index}", f"w{index}"], [f"x{index + 1}"]) for index in range(10)]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, [300, 1000])],
        [helper.make_tensor_value_info("x10", TensorProto.FLOAT, [300, 1000])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    data: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()
    return data


def large_safetensors() -> bytes:
    """A header of more than the first block, and 8 MB behind it."""
    tensors = {f"layer.{index}.{'weight' * 10}": np.ones(1000, np.float32) for index in range(2000)}
    return save(tensors)


def transferred(server: FaultServer) -> int:
    return sum(request.sent for request in server.state.log.requests)


def ranges(server: FaultServer) -> list[str]:
    return [request.range for request in server.state.log.requests if request.method == "GET"]


async def test_external_data_beside_a_file_is_found(platform: NativePlatform, model: Path) -> None:
    (found,) = await inspect_what_is_here(platform, model / "onnx/model.onnx")

    assert found.problems == []
    assert found.data_files == {"model.onnx_data": (model / "onnx/model.onnx_data").stat().st_size}


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda data: data.unlink(), "is missing"), (lambda data: data.write_bytes(b"short"), "has 5 bytes, but 352 are")],
)
async def test_external_data_that_is_not_there_is_a_problem(
    platform: NativePlatform, model: Path, damage: Any, message: str
) -> None:
    damage(model / "onnx/model.onnx_data")

    (found,) = await inspect_what_is_here(platform, model / "onnx/model.onnx")
    in_folder = {file.path: file for file in await inspect_what_is_here(platform, model)}["onnx/model.onnx"]

    for file in (found, in_folder):
        assert len(file.problems) == 1
        assert message in file.problems[0]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", "a\\b", "C:x", ""])
async def test_external_data_elsewhere_is_never_opened(platform: NativePlatform, model: Path, name: str) -> None:
    path = model / "onnx/model.onnx"
    (model / "secret").write_bytes(b"x" * 1000)
    graph = onnx.load(path, load_external_data=False)
    (location,) = [entry for entry in graph.graph.initializer[0].external_data if entry.key == "location"]
    location.value = name
    path.write_bytes(graph.SerializeToString())

    (found,) = await inspect_what_is_here(platform, path)

    assert found.data_files == {}
    assert "no file beside it" in found.problems[0]


async def test_folder_is_told_file_by_file(platform: NativePlatform, model: Path) -> None:
    save_file({"a": np.ones(3, np.float16)}, model / "model.safetensors")
    write_manifest(model)

    found = {file.path: file for file in await inspect_what_is_here(platform, model)}

    assert {path: file.kind for path, file in found.items()} == {
        "config.json": "json",
        "manifest.json": "json",
        "model.safetensors": "safetensors",
        "onnx/model.onnx": "onnx",
        "onnx/model.onnx_data": "external data",
        "onnx/model_quantized.onnx": "onnx",
        "onnx/model_quantized.onnx_data": "external data",
        "tokenizer.json": "json",
        "tokenizer_config.json": "json",
    }
    assert [file.problems for file in found.values() if file.problems] == []


async def test_damaged_files_of_a_folder_are_problems_of_theirs(platform: NativePlatform, model: Path) -> None:
    write_manifest(model)
    (model / "onnx/model.onnx").write_bytes(b"\x08\x0a")
    (model / "onnx/model_quantized.onnx").write_bytes(LFS)
    (model / "config.json").unlink()
    (model / "extra.safetensors").write_bytes(b"")

    found = {file.path: file.problems for file in await inspect_what_is_here(platform, model)}

    assert "no graph" in found["onnx/model.onnx"][0]
    assert "The manifest says" in found["onnx/model.onnx"][1]
    assert "Git LFS pointer" in found["onnx/model_quantized.onnx"][0]
    assert found["manifest.json"] == ["config.json is listed, but missing."]
    assert "empty" in found["extra.safetensors"][0]


async def test_shards_of_a_checkpoint_are_held_against_their_index(platform: NativePlatform, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"a": np.ones(3)}, folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": "gone"}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}))

    found = {file.path: file.problems for file in await inspect_what_is_here(platform, folder)}
    assert found[index.name] == [
        "model-00001-of-00002.safetensors has no tensor 'b'.",
        "gone is missing, with 1 tensors.",
    ]

    index.write_text("[" * 100_000)
    found = {file.path: file.problems for file in await inspect_what_is_here(platform, folder)}
    assert "no index of shards" in found[index.name][0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.bin: The file is empty"),
        (LFS, "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b"\x80\x04\x95", "a pickled file"),
    ],
)
async def test_other_kinds_of_files_are_named(
    platform: NativePlatform, tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(InspectionError, match=message):
        await inspect_what_is_here(platform, tmp_path / "a.bin")


async def test_what_is_not_there_is_a_named_error(platform: NativePlatform, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        await inspect_what_is_here(platform, tmp_path / "none.onnx")


# Servers


async def test_safetensors_on_a_server_take_two_ranges_of_the_header(
    platform: NativePlatform, server: FaultServer
) -> None:
    data = server.write("model.safetensors", large_safetensors())

    (found,) = await inspect_url(platform, f"{server.url}/model.safetensors")

    assert isinstance(found.content, SafetensorsFile)
    assert (found.path, found.size, len(found.content.tensors)) == ("model.safetensors", len(data), 2000)
    assert len(ranges(server)) == 2
    assert all(ranges(server))
    assert transferred(server) < found.content.header_size + 65536 + 2000
    assert transferred(server) < len(data) / 10


async def test_onnx_on_a_server_is_read_without_its_weights(platform: NativePlatform, server: FaultServer) -> None:
    data = server.write("model.onnx", large_onnx())

    (found,) = await inspect_url(platform, f"{server.url}/model.onnx")

    assert isinstance(found.content, OnnxFile)
    assert found.content.parameters == 3_000_000
    assert transferred(server) < len(data) / 20


async def test_external_data_on_a_server_is_asked_for_by_its_head(
    platform: NativePlatform, server: FaultServer, model: Path
) -> None:
    shutil.copytree(model, server.root / "m")
    (server.root / "m/onnx/model_quantized.onnx_data").unlink()

    (whole,) = await inspect_url(platform, f"{server.url}/m/onnx/model.onnx")
    (broken,) = await inspect_url(platform, f"{server.url}/m/onnx/model_quantized.onnx")

    assert whole.problems == []
    assert list(whole.data_files.values()) == [(model / "onnx/model.onnx_data").stat().st_size]
    assert "is missing" in broken.problems[0]
    assert "HEAD /m/onnx/model.onnx_data" in server.requests()


async def test_hugging_face_files_are_read_through_their_redirect(
    platform: NativePlatform, server: FaultServer
) -> None:
    server.hugging_face("org/name", "main", {"model.safetensors": large_safetensors()}, private_token="secret")
    url = f"{server.url}/org/name/resolve/main/model.safetensors"

    with pytest.raises(HubError, match=r"status 401\. Give an access token"):
        await inspect_url(platform, url)
    (found,) = await inspect_url(platform, url, headers={"authorization": "Bearer secret"})

    assert isinstance(found.content, SafetensorsFile)
    assert transferred(server) < 400_000


async def test_server_without_ranges_gives_the_whole_of_a_small_file(
    platform: NativePlatform, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.write("model.safetensors", save({"a": np.ones(50_000)}))
    server.fault("/model.safetensors", "no_range")

    (found,) = await inspect_url(platform, f"{server.url}/model.safetensors")
    assert found.size > 400_000

    monkeypatch.setattr(reader, "MAX_WHOLE_BYTES", 100_000)
    with pytest.raises(HubError, match="could not be read"):
        await inspect_url(platform, f"{server.url}/model.safetensors")


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("status", 404, "status 404"),
        ("drop", None, "does not answer"),
        ("truncate", 100, "could not be read"),
        ("wrong_range", 7, "another range"),
        ("html", None, "a web page"),
    ],
)
async def test_servers_that_break_give_named_errors(
    platform: NativePlatform, server: FaultServer, kind: str, value: Any, message: str
) -> None:
    server.write("model.safetensors", large_safetensors())
    server.fault("/model.safetensors", kind, value)

    with pytest.raises((HubError, InspectionError), match=message):
        await inspect_url(platform, f"{server.url}/model.safetensors")


async def test_file_that_changes_meanwhile_is_noticed(platform: NativePlatform, server: FaultServer) -> None:
    data = server.write("model.safetensors", large_safetensors())
    server.fault("/model.safetensors", "change", {"after_requests": 1, "data": "x" * len(data)})

    with pytest.raises(HubError, match="changed meanwhile"):
        await inspect_url(platform, f"{server.url}/model.safetensors")


async def test_there_is_a_limit_to_what_is_taken(
    platform: NativePlatform, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.write("model.onnx", large_onnx())
    monkeypatch.setattr(reader, "MAX_REMOTE_BYTES", 100_000)

    with pytest.raises(InspectionError, match="Download the file first"):
        await inspect_url(platform, f"{server.url}/model.onnx")


# The command


def test_command_prints_one_file_in_detail(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model / "onnx/model.onnx")]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("model.onnx: onnx, ")
    assert "input_ids       int64  [batch_size, sequence_length]" in lines
    assert "last_hidden_state  float32  [batch_size, sequence_length, 8]" in lines
    assert any(line.split() == ["OPERATOR", "NODES", "CONSTANTS"] for line in lines)
    assert any(line.split()[:3] == ["table", "float32", "[11,"] for line in lines)
    assert any(line.split() == ["model.onnx_data", "352", "B", "352", "B"] for line in lines)


def test_command_prints_a_table_of_a_folder_and_its_problems(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "onnx/model.onnx_data").unlink()

    assert main(["inspect", str(model)]) == 0

    output = capsys.readouterr().out
    assert "onnx/model_quantized.onnx" in output
    assert "onnx/model.onnx: The file of external data model.onnx_data is missing" in output


def test_command_prints_data_for_programs(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model / "onnx/model.onnx"), "--json"]) == 0

    (found,) = json.loads(capsys.readouterr().out)
    assert found["external_data"] == {"model.onnx_data": {"needed": 352, "size": 352}}
    assert found["inputs"][0] == {
        "name": "input_ids",
        "dtype": "int64",
        "shape": ["batch_size", "sequence_length"],
    }
    assert found["operators"]["Gather"] == {"nodes": 1, "size": 352}


def test_command_takes_addresses_and_a_token(
    server: FaultServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hugging_face("org/name", "main", {"model.safetensors": save({"a": np.ones(3)})}, private_token="secret")
    words = ["inspect", f"{server.url}/org/name/resolve/main/model.safetensors"]

    assert main(words) == 1
    assert "HubError" in capsys.readouterr().err
    assert main([*words, "--access-token-env", "A_TOKEN"]) == 1
    assert "A_TOKEN has no access token" in capsys.readouterr().err
    monkeypatch.setenv("A_TOKEN", "secret")
    assert main([*words, "--access-token-env", "A_TOKEN"]) == 0
    assert "F64" in capsys.readouterr().out


def test_names_from_files_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"\x1b[2Jevil\r\n": np.ones(3)}, tmp_path / "a.safetensors")

    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0

    output = capsys.readouterr().out
    assert "evil" in output
    assert "\x1b" not in output
    assert "\r" not in output


def test_cut_off_safetensors_are_not_taken_for_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(save({"w": np.ones(100, np.float32)})[:40])

    assert main(["inspect", str(path)]) == 1

    assert "The file ends after 40 bytes" in capsys.readouterr().err


def test_names_that_cannot_be_written_or_steer_a_terminal_are_escaped_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = b'{"\\ud800\xc2\x9b2J":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))

    assert main(["inspect", "--json", str(path)]) == 0

    output = capsys.readouterr().out
    assert output.isascii()
    assert json.loads(output)[0]["tensors"][0]["name"] == "\ud800\x9b2J"


def test_damaged_address_is_an_error_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "http://[bad"]) == 1

    assert "HubError" in capsys.readouterr().err
