"""Folders that appear complete or not at all, and manifests that a hub's clients understand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from pywebml.errors import PrepareError
from pywebml.hub import PART_SIZE
from pywebml.hub.listing import FileEntry, parse_manifest
from pywebml.platform.parts import part_hash
from pywebml.prepare.layout import MANIFEST, folder_in_one_step, write_manifest


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pattern(size: int) -> bytes:
    """Bytes of which no two parts are the same: they repeat after a prime number of them."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def manifest_of(folder: Path) -> dict[str, Any]:
    write_manifest(folder)
    files: dict[str, Any] = json.loads((folder / MANIFEST).read_text())["files"]
    return files


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (0, 0),
        (5, 0),
        (PART_SIZE, 0),
        (PART_SIZE + 1, 2),
        (2 * PART_SIZE, 2),
        (2 * PART_SIZE + 3, 3),
    ],
)
def test_manifest_lists_the_hash_of_every_part_of_a_large_file(tmp_path: Path, size: int, parts: int) -> None:
    data = pattern(size)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(data)

    write_manifest(tmp_path)

    hashes = tuple(part_hash(data[begin : begin + PART_SIZE]) for begin in range(0, size, PART_SIZE)) if parts else ()
    assert len(hashes) == parts
    entries = parse_manifest((tmp_path / MANIFEST).read_bytes(), "https://hub.example/manifest.json")
    assert entries == {"onnx/model.onnx": FileEntry(size, sha256(data), parts=hashes)}


def test_small_files_have_no_word_on_parts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    assert manifest_of(tmp_path) == {"config.json": {"size": 2, "sha256": sha256(b"{}")}}


def test_each_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(pattern(PART_SIZE + 10))
    opened: list[Path] = []
    original: Callable[..., BufferedReader] = Path.open

    def open_noted(self: Path, mode: str = "r", **options: Any) -> BufferedReader:
        if mode == "rb":
            opened.append(self)
        return original(self, mode, **options)

    monkeypatch.setattr(Path, "open", open_noted)
    write_manifest(tmp_path)
    assert opened == [tmp_path / "model.onnx"]


def test_manifest_that_is_written_anew_does_not_list_itself_but_what_lies_deeper_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / MANIFEST).write_bytes(b"a")
    first = manifest_of(tmp_path)
    assert set(first) == {f"sub/{MANIFEST}"}
    assert manifest_of(tmp_path) == first


def test_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"

    with folder_in_one_step(target) as folder:
        (folder / "file").write_text("new")
        assert not target.exists()

    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_folder_replaces_an_older_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "stale").write_text("old")

    with folder_in_one_step(target) as folder:
        (folder / "file").write_text("new")

    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_failure_keeps_the_older_folder_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "stale").write_text("old")

    def fill_and_fail() -> None:
        with folder_in_one_step(target) as folder:
            (folder / "file").write_text("new")
            raise KeyError("anything")

    with pytest.raises(KeyError, match="anything"):
        fill_and_fail()

    assert (target / "stale").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_failed_move_brings_the_older_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "stale").write_text("old")
    rename = Path.rename

    def rename_but_not_the_new_one(self: Path, to: Path) -> Path:
        if self.name == "new":
            raise PermissionError(13, "Permission denied")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", rename_but_not_the_new_one)
    with pytest.raises(PrepareError, match="Permission denied"), folder_in_one_step(target):
        pass

    assert (target / "stale").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_file_in_the_place_of_the_folder_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")

    with pytest.raises(PrepareError, match="target is a file"), folder_in_one_step(tmp_path / "target"):
        pass

    assert (tmp_path / "target").read_text() == "precious"


def test_file_in_the_way_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(PrepareError, match="Cannot write"), folder_in_one_step(tmp_path / "file" / "target"):
        pass
