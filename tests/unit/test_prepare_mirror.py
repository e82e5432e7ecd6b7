"""The static mirror of a Remote Settings server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pywebml.errors import RecordError
from pywebml.prepare.mirror import MirrorAttachment, MirrorCollection, write_demo_mirror, write_mirror

WASM = b"\0asm" + bytes(range(200))


@pytest.fixture
def wasm(tmp_path: Path) -> Path:
    path = tmp_path / "ort-wasm-simd-threaded.wasm"
    path.write_bytes(WASM)
    return path


@pytest.fixture
def mirror(tmp_path: Path, wasm: Path) -> Path:
    write_demo_mirror(tmp_path / "v1", wasm, "1.30.0")
    return tmp_path / "v1"


def changeset(mirror: Path, bucket: str, collection: str) -> dict[str, Any]:
    path = mirror / "buckets" / bucket / "collections" / collection / "changeset"
    answer: dict[str, Any] = json.loads(path.read_bytes())
    return answer


def all_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publish(tmp_path: Path, records: Mapping[str, Mapping[str, Any]], **parts: Any) -> None:
    collection = MirrorCollection("main", "things", timestamp=1000, records=records, **parts)
    write_mirror(tmp_path / "v1", [collection])


def test_root_says_where_attachments_are_relative_to_the_server(mirror: Path) -> None:
    root = json.loads((mirror / "index.html").read_bytes())

    assert root["capabilities"]["attachments"]["base_url"] == "attachments/"
    assert {"project_name", "project_version", "http_api_version", "url", "settings"} <= root.keys()


def test_runtime_record_describes_its_attachment(mirror: Path) -> None:
    answer = changeset(mirror, "main", "ml-onnx-runtime")

    (record,) = answer["changes"]
    attachment = record["attachment"]
    assert (record["name"], record["version"]) == ("ort-wasm-simd-threaded.wasm", "1.30.0")
    assert attachment["hash"] == hashlib.sha256(WASM).hexdigest()
    assert attachment["size"] == len(WASM)
    assert attachment["filename"] == "ort-wasm-simd-threaded.wasm"
    assert attachment["mimetype"] == "application/wasm"
    assert attachment["location"].startswith("main-workspace/ml-onnx-runtime/")
    assert (mirror / "attachments" / attachment["location"]).read_bytes() == WASM


def test_changeset_has_the_protocols_shape(mirror: Path) -> None:
    answer = changeset(mirror, "main", "ml-onnx-runtime")

    assert answer["timestamp"] == answer["changes"][0]["last_modified"]
    assert answer["metadata"] == {
        "id": "ml-onnx-runtime",
        "bucket": "main",
        "last_modified": answer["timestamp"],
        "signatures": [],
        "complete": True,
    }


def test_options_record_uses_firefoxs_names(mirror: Path) -> None:
    (record,) = changeset(mirror, "main", "ml-inference-options")["changes"]

    assert record["taskName"] == "feature-extraction"
    assert record["modelId"] == record["tokenizerId"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert record["modelRevision"] == record["tokenizerRevision"] == "v1.0.0"
    assert record["dtype"] == "q8"


def test_monitor_lists_every_collection_with_its_timestamp(mirror: Path) -> None:
    monitor = changeset(mirror, "monitor", "changes")

    assert monitor["metadata"] == {}
    assert {change["collection"] for change in monitor["changes"]} == {
        "ml-onnx-runtime",
        "ml-inference-options",
        "ml-model-allow-deny-list",
    }
    for change in monitor["changes"]:
        assert change["last_modified"] == changeset(mirror, change["bucket"], change["collection"])["timestamp"]


def test_same_inputs_give_same_bytes(mirror: Path, wasm: Path, tmp_path: Path) -> None:
    write_demo_mirror(tmp_path / "again", wasm, "1.30.0")

    assert all_files(tmp_path / "again") == all_files(mirror)


def test_newer_runtime_has_a_larger_timestamp_and_another_address(mirror: Path, wasm: Path, tmp_path: Path) -> None:
    before = changeset(mirror, "main", "ml-onnx-runtime")
    wasm.write_bytes(WASM + b"!")
    write_demo_mirror(mirror, wasm, "1.31.0")

    after = changeset(mirror, "main", "ml-onnx-runtime")
    assert after["timestamp"] > before["timestamp"]
    assert after["changes"][0]["id"] == before["changes"][0]["id"]
    old, new = (answer["changes"][0]["attachment"]["location"] for answer in (before, after))
    assert old != new
    assert not (mirror / "attachments" / old).exists()


def test_records_are_sorted_newest_first_with_distinct_times(tmp_path: Path) -> None:
    publish(tmp_path, {"new": {"n": 2}, "old": {"n": 1}})

    changes = changeset(tmp_path / "v1", "main", "things")["changes"]
    assert [(change["n"], change["last_modified"]) for change in changes] == [(2, 1000), (1, 999)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.5}, "float 0.5"),
        ({"nested": {"deep": [1, {"x": 2.0}]}}, "float 2.0"),
        ({"large": 2**53}, "beyond"),
        ({"data": b"bytes"}, "holds bytes"),
        ({"inner": {1: "one"}}, "keys are texts"),
        ({"id": "mine"}, "field 'id'"),
        ({"last_modified": 1}, "field 'last_modified'"),
    ],
)
def test_records_that_would_not_survive_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        publish(tmp_path, {"one": fields})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("filename", ["../up.wasm", "a/b.wasm", "a..b", "a\\b", ".hidden", "new\nline", "space here"])
def test_file_names_that_are_no_plain_names_are_refused(tmp_path: Path, wasm: Path, filename: str) -> None:
    attachment = MirrorAttachment(wasm, "application/wasm", filename)

    with pytest.raises(RecordError, match="file name"):
        publish(tmp_path, {"one": {}}, attachments={"one": attachment})
    assert not (tmp_path / "v1").exists()


def test_attachment_without_file_or_record_is_refused(tmp_path: Path, wasm: Path) -> None:
    with pytest.raises(RecordError, match="there is no file"):
        publish(tmp_path, {"one": {}}, attachments={"one": MirrorAttachment(tmp_path / "none", "text/plain")})
    with pytest.raises(RecordError, match="no such records"):
        publish(tmp_path, {"one": {}}, attachments={"two": MirrorAttachment(wasm, "application/wasm")})
    with pytest.raises(RecordError, match="MIME type"):
        publish(tmp_path, {"one": {}}, attachments={"one": MirrorAttachment(wasm, "wasm")})


def test_names_that_would_leave_the_mirror_are_refused(tmp_path: Path) -> None:
    for bucket, name in [("..", "things"), ("main", "../things"), ("main", "")]:
        with pytest.raises(RecordError, match="is not a bucket and a collection"):
            write_mirror(tmp_path / "v1", [MirrorCollection(bucket, name, timestamp=1)])
    with pytest.raises(RecordError, match="there twice"):
        write_mirror(tmp_path / "v1", [MirrorCollection("main", "things", timestamp=1)] * 2)


def test_failure_keeps_the_mirror_that_was_there(mirror: Path, wasm: Path) -> None:
    before = all_files(mirror)

    with pytest.raises(RecordError, match="not a version"):
        write_demo_mirror(mirror, wasm, "latest")
    wasm.unlink()
    with pytest.raises(RecordError, match="there is no file"):
        write_demo_mirror(mirror, wasm, "1.30.0")

    assert all_files(mirror) == before
