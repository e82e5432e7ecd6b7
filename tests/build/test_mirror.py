"""The settings mirror of the build and what the package brings along of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pywebml.prepare.mirror import demo_collections, write_dump
from pywebml.settings import packaged_dump
from web.build import mirror
from web.build.mirror import DUMPS, RUNTIME_WASM, runtime_version


@pytest.mark.parametrize("index", [0, 1, 2])
def test_package_brings_along_what_the_mirror_publishes(index: int, tmp_path: Path) -> None:
    collection = demo_collections(RUNTIME_WASM, runtime_version())[index]
    write_dump(tmp_path, collection)
    path = Path(collection.bucket) / f"{collection.collection}.json"
    # When this fails: python -m web.build.mirror dumps
    assert (tmp_path / path).read_text() == (DUMPS / path).read_text()
    dump = packaged_dump(collection.bucket, collection.collection)
    assert dump is not None
    assert dump.timestamp == collection.timestamp
    assert len(dump.records) == len(collection.records)


def test_unknown_collection_has_no_dump() -> None:
    assert packaged_dump("main", "nothing") is None
    assert packaged_dump("nowhere", "ml-onnx-runtime") is None


def test_keys_are_made_once_and_their_root_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "KEYS", tmp_path / "keys")
    monkeypatch.setattr(mirror, "ROOT_FILE", tmp_path / "build" / "root.json")
    mirror.write_keys()
    first = json.loads(mirror.ROOT_FILE.read_text())
    assert len(first["sha256"]) == 64
    mirror.write_keys()
    assert json.loads(mirror.ROOT_FILE.read_text()) == first
