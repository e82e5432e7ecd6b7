"""Folders that appear complete or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pywebml.errors import PrepareError
from pywebml.prepare.layout import folder_in_one_step


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


def test_file_in_the_way_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(PrepareError, match="Cannot write"), folder_in_one_step(tmp_path / "file" / "target"):
        pass
