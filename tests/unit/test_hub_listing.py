"""What a hub says about files before they are downloaded: manifests, trees, pages and pointers, all untrusted."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.errors import IntegrityError, OptionsError
from pywebml.hub.addresses import check_path
from pywebml.hub.listing import (
    LARGEST_POINTER,
    PART_SIZE,
    FileEntry,
    linked_sha256,
    next_page,
    parse_lfs_pointer,
    parse_manifest,
    parse_tree,
)
from pywebml.platform.parts import BLOCK_SIZE

URL = "https://hub.example/manifest.json"
A, B, C = (digit * 64 for digit in "abc")
OID = "0123456789abcdef0123456789abcdef01234567"


def manifest(**entry: Any) -> bytes:
    return json.dumps({"files": {"onnx/model.onnx": entry}}).encode()


# manifest.json


def test_manifest_gives_size_hash_and_parts() -> None:
    parts = {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B, C]}
    read = parse_manifest(
        json.dumps(
            {
                "files": {
                    "onnx/model.onnx": {"size": PART_SIZE + 1, "sha256": A, "parts": parts, "more": [1]},
                    "é b/config.json": {"size": 0, "sha256": B, "parts": None},
                },
                "more": 1,
            }
        ).encode(),
        URL,
    )
    assert read == {
        "onnx/model.onnx": FileEntry(PART_SIZE + 1, A, parts=(B, C)),
        "é b/config.json": FileEntry(0, B),
    }
    assert read["onnx/model.onnx"].content_id == f"sha256:{A}"


@pytest.mark.parametrize(
    ("size", "parts", "expected"),
    [
        (PART_SIZE + 1, {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B, C]}, (B, C)),
        (PART_SIZE, {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B]}, (B,)),
        (0, {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": []}, ()),
        # Of another size: nothing to check by, and nothing wrong.
        (100, {"size": 50, "block": BLOCK_SIZE, "sha256": [B, C]}, ()),
        (PART_SIZE + 1, {"size": PART_SIZE, "block": 4096, "sha256": [B, C]}, ()),
        (PART_SIZE + 1, {"size": PART_SIZE, "sha256": [B, C]}, ()),
    ],
)
def test_parts_of_our_size_are_taken_and_others_passed_over(
    size: int, parts: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert parse_manifest(manifest(size=size, sha256=A, parts=parts), URL)["onnx/model.onnx"].parts == expected


@pytest.mark.parametrize(
    "parts",
    [
        [],
        "x",
        3,
        True,
        {},
        {"size": PART_SIZE},
        {"sha256": [B]},
        {"size": 0, "sha256": []},
        {"size": -1, "sha256": []},
        {"size": float(PART_SIZE), "sha256": [B, C]},
        {"size": True, "sha256": [B, C]},
        {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B]},
        {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B, C, C]},
        {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B, "c"]},
        {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": [B, None]},
        {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": {"0": B, "1": C}},
        {"size": 1, "sha256": [B, C]},
    ],
)
def test_parts_that_do_not_fit_the_file_are_refused(parts: Any) -> None:
    with pytest.raises(IntegrityError, match=r"'parts' of 'onnx/model\.onnx'"):
        parse_manifest(manifest(size=PART_SIZE + 1, sha256=A, parts=parts), URL)


@pytest.mark.parametrize(
    ("size", "sha256"),
    [
        (-1, A),
        (1.0, A),
        (True, A),
        ("1", A),
        (None, A),
        (1, A.upper()),
        (1, A[:-1]),
        (1, A + "a"),
        (1, A + "\n"),
        (1, None),
        (1, [A]),
        (1, "sha256:" + A),
    ],
)
def test_manifest_with_a_size_or_hash_that_is_none_is_refused(size: Any, sha256: Any) -> None:
    with pytest.raises(IntegrityError, match=r"hub\.example/manifest\.json is not a manifest") as caught:
        parse_manifest(manifest(size=size, sha256=sha256), URL)
    assert caught.value.details["url"] == URL


@pytest.mark.parametrize("path", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "a\0", "\ud800", "a" * 2000])
def test_manifest_with_a_path_that_leads_elsewhere_is_refused(path: str) -> None:
    data = json.dumps({"files": {path: {"size": 1, "sha256": A}}}).encode()
    with pytest.raises(IntegrityError):
        parse_manifest(data, URL)


DEEP = [b"[" * 100_000, b'{"files":' * 50_000, b'{"files":{"a":' + b"[" * 100_000, b"9" * 10_000]


@pytest.mark.parametrize("data", DEEP)
def test_deep_nesting_and_long_numbers_are_refused_by_name(data: bytes) -> None:
    for parse in (parse_manifest, parse_tree):
        with pytest.raises(IntegrityError):
            parse(data, URL)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([A, B, OID, "file"]),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.text() | st.sampled_from(["files", "size", "sha256", "parts", "a/b", "type", "path", "lfs", "oid"]),
            inner,
        )
    ),
    max_leaves=6,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "size": st.integers() | JSON,
        "sha256": st.sampled_from([A, B]) | JSON,
        "parts": st.fixed_dictionaries(
            {
                "size": st.sampled_from([1, PART_SIZE]) | JSON,
                "block": st.just(BLOCK_SIZE) | JSON,
                "sha256": st.lists(st.sampled_from([A, B]) | JSON),
            }
        )
        | JSON,
    },
)
MANIFESTS = JSON | st.fixed_dictionaries({"files": st.dictionaries(st.sampled_from(["a", "../a"]) | st.text(), ENTRY)})


def check_manifest(data: bytes) -> None:
    try:
        entries = parse_manifest(data, URL)
    except IntegrityError as error:
        assert URL in error.message  # noqa: PT017 (which error is the point)
        return
    for path, entry in entries.items():
        check_valid(path, entry)
        assert len(entry.parts) in {0, -(-entry.size // PART_SIZE)}
        assert entry.sha256


def check_valid(path: str, entry: FileEntry) -> None:
    assert check_path(path) == path
    assert type(entry.size) is int
    assert entry.size >= 0
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in (*entry.parts, entry.sha256) if digest)
    assert len(entry.git_oid) in {0, 40}


@given(st.binary() | st.binary().map(lambda data: b'{"files":{' + data))
def test_any_bytes_are_a_manifest_or_an_integrity_error(data: bytes) -> None:
    check_manifest(data)


@given(MANIFESTS)
def test_any_json_is_a_manifest_or_an_integrity_error(document: Any) -> None:
    check_manifest(json.dumps(document).encode())


# The tree of Hugging Face


def test_tree_gives_hashes_of_large_files_and_gits_names_of_others() -> None:
    page = [
        {"type": "directory", "oid": OID, "size": 0, "path": "onnx"},
        {"type": "file", "oid": OID, "size": 650, "path": "config.json"},
        {"type": "file", "oid": "short", "size": 7, "path": "odd.json"},
        {
            "type": "file",
            "oid": OID,
            "size": 90387606,
            "lfs": {"oid": A, "size": 90387606, "pointerSize": 133},
            "path": "onnx/model.onnx",
            "xetHash": "x",
        },
    ]
    read = parse_tree(json.dumps(page).encode(), URL)
    assert read == {
        "config.json": FileEntry(650, git_oid=OID),
        "odd.json": FileEntry(7),
        "onnx/model.onnx": FileEntry(90387606, A),
    }
    assert [entry.content_id for entry in read.values()] == [f"git:{OID}", "", f"sha256:{A}"]


@pytest.mark.parametrize(
    "item",
    [
        None,
        [],
        "file",
        {},
        {"type": "file"},
        {"type": "directory", "path": "a", "size": 1},
        {"type": "file", "path": "../a", "size": 1},
        {"type": "file", "path": "/a", "size": 1},
        {"type": "file", "path": ["a"], "size": 1},
        {"type": "file", "path": "a", "size": -1},
        {"type": "file", "path": "a", "size": "1"},
        {"type": "file", "path": "a", "size": True},
        {"type": "file", "path": "a", "size": 1, "lfs": {"oid": "short", "size": 1}},
        {"type": "file", "path": "a", "size": 1, "lfs": {"oid": A, "size": -1}},
        {"type": "file", "path": "a", "size": 1, "lfs": []},
    ],
)
def test_entry_of_a_tree_that_cannot_be_asked_for_is_passed_over(item: Any) -> None:
    good = {"type": "file", "oid": OID, "size": 1, "path": "b"}
    assert parse_tree(json.dumps([item, good]).encode(), URL) == {"b": FileEntry(1, git_oid=OID)}


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"error": "Repository not found"}', b"<html>", b"\xff\xfe"])
def test_answer_that_is_no_tree_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="list of files"):
        parse_tree(data, URL)


TREE_ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(["file", "directory"]), "path": st.sampled_from(["a", "../a", "a/b"]) | st.text()},
    optional={
        "size": st.integers() | JSON,
        "oid": st.sampled_from([OID, A]) | JSON,
        "lfs": st.fixed_dictionaries({"oid": st.sampled_from([A, OID]) | JSON, "size": st.integers() | JSON}) | JSON,
    },
)


def check_tree(data: bytes) -> None:
    try:
        entries = parse_tree(data, URL)
    except IntegrityError:
        return
    for path, entry in entries.items():
        check_valid(path, entry)


@given(st.binary() | st.binary().map(lambda data: b"[" + data + b"]"))
def test_any_bytes_are_a_tree_or_an_integrity_error(data: bytes) -> None:
    check_tree(data)


@given(JSON | st.lists(TREE_ITEM | JSON))
def test_any_json_is_a_tree_or_an_integrity_error(document: Any) -> None:
    check_tree(json.dumps(document).encode())


# Pages

PAGE = "https://hub.example/api/models/a/b/tree/main?recursive=true"


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (None, None),
        ("", None),
        ('<https://hub.example/x?cursor=a>; rel="next"', "https://hub.example/x?cursor=a"),
        ("<https://hub.example/x>;rel=next", "https://hub.example/x"),
        ('<https://hub.example/x>; title="a"; rel="next"', "https://hub.example/x"),
        ('<https://hub.example/p>; rel="prev", <https://hub.example/n>; rel="next"', "https://hub.example/n"),
        ('<https://hub.example/n>; rel="next", <https://hub.example/p>; rel="prev"', "https://hub.example/n"),
        ('</x?cursor=a>; rel="next"', "https://hub.example/x?cursor=a"),
        ('<?cursor=a>; rel="next"', "https://hub.example/api/models/a/b/tree/main?cursor=a"),
        ('<https://hub.example/x>; rel="prev"', None),
        ('<https://hub.example/x>; rel="next-archive"', None),
        ('<https://hub.example/x>; rel="nextpage"', None),
        ('<https://other.example/x>; rel="next"', None),
        ('<http://hub.example/x>; rel="next"', None),
        ('<https://hub.example:444/x>; rel="next"', None),
        ('<https://hub.example@other.example/x>; rel="next"', None),
        ('<https://user@hub.example/x>; rel="next"', None),
        ('<//other.example/x>; rel="next"', None),
        ('<javascript:alert(1)>; rel="next"', None),
        ('<https://[>; rel="next"', None),
        ("nonsense", None),
    ],
)
def test_next_page_is_of_the_same_origin_or_none(link: str | None, expected: str | None) -> None:
    assert next_page(link, PAGE) == expected


@given(st.text() | st.text().map(lambda text: f'<{text}>; rel="next"'))
def test_no_link_leads_to_another_origin(link: str) -> None:
    address = next_page(link, PAGE)
    assert address is None or address.startswith("https://hub.example")


@pytest.mark.parametrize("piece", ["<", "<a>;", "<a> ", ";rel=nex", '<a>; rel="', "< >;;"])
def test_long_link_takes_no_long_time(piece: str) -> None:
    started = time.process_time()
    next_page(piece * 40_000, PAGE)
    assert time.process_time() - started < 1


# Pointers of Git LFS


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{A}\nsize 12345\n"


def test_pointer_gives_hash_and_size() -> None:
    assert parse_lfs_pointer(POINTER.encode()) == FileEntry(12345, A)
    extended = POINTER.replace("oid", f"ext-0-foo sha256:{B}\noid")
    assert parse_lfs_pointer(extended.encode()) == FileEntry(12345, A)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        f"oid sha256:{A}\nsize 12345\n",
        POINTER.replace("v1", "v2"),
        POINTER.replace("sha256:", ""),
        POINTER.replace("sha256:", "sha512:"),
        POINTER.replace(A, A[:-1]),
        POINTER.replace(A, A.upper()),
        POINTER.replace("12345", "-1"),
        POINTER.replace("12345", "1.5"),
        POINTER.replace("12345", "٣"),
        POINTER.replace("12345", "9" * 16),
        POINTER.replace("size 12345\n", ""),
        POINTER + " " * LARGEST_POINTER,
    ],
)
def test_what_is_no_pointer_says_nothing(text: str) -> None:
    assert parse_lfs_pointer(text.encode()) is None


@given(st.binary() | st.binary().map(lambda data: b"version https://git-lfs.github.com/spec/v1\n" + data))
def test_any_bytes_are_a_pointer_or_none(data: bytes) -> None:
    entry = parse_lfs_pointer(data)
    if entry is not None:
        check_valid("a", entry)


# Headers


@pytest.mark.parametrize(
    ("etag", "expected"),
    [(f'"{A}"', A), (A, A), (f'W/"{A}"', A), (f'"{OID}"', ""), (f'"{A}-gzip"', ""), ("", ""), (f'"{A.upper()}"', "")],
)
def test_linked_etag_is_a_hash_or_says_nothing(etag: str, expected: str) -> None:
    assert linked_sha256({"x-linked-etag": etag}) == expected
    assert linked_sha256({}) == ""


def test_names_are_checked_as_in_addresses() -> None:
    with pytest.raises(OptionsError):
        check_path("../a")
