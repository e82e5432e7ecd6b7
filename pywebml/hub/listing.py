"""What a hub says about a model's files before they are downloaded: size, hash, and which there are at all.

Three wire formats, each with its parser: `manifest.json` of our own hub layout, the tree of the Hugging Face API, and
the pointers that Git LFS leaves in place of large files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from pywebml.errors import IntegrityError, OptionsError
from pywebml.hub.addresses import check_path
from pywebml.platform.parts import BLOCK_SIZE

MANIFEST = "manifest.json"
PART_SIZE = 8 * 1024 * 1024
"""Bytes of the parts in which large files are downloaded and, where a manifest has their hashes, checked."""
LARGEST_POINTER = 1024
"""Bytes. A pointer of Git LFS has about 130."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_OID = re.compile(r"[0-9a-f]{40}")
_POINTER_VERSION = b"version https://git-lfs.github.com/spec/v1\n"
_NEXT_PAGE = re.compile(r'<([^<>]*)>\s*;[^,<]*\brel="?next(?![\w-])')


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What is known about a file.

    Attributes:
        size: In bytes.
        sha256: Of its bytes, lower-case hexadecimal; empty when unknown.
        git_oid: SHA-1 by which git names its bytes (`blob SIZE\\0` before them); empty when unknown.
        parts: `part_hash` of every `PART_SIZE` bytes; empty when unknown.
    """

    size: int
    sha256: str = ""
    git_oid: str = ""
    parts: tuple[str, ...] = ()

    @property
    def content_id(self) -> str:
        """Names the bytes, as far as anything does; else empty."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.git_oid}" if self.git_oid else ""


def git_oid_of(data: bytes) -> str:
    """SHA-1 by which git names a file of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def parse_manifest(data: bytes, url: str) -> Mapping[str, FileEntry]:
    """The files of a `manifest.json`.

    {"files": {"onnx/model.onnx": {"size": 90387606, "sha256": "6fd5d7…",
                                   "parts": {"size": 8388608, "block": 524288, "sha256": ["…"]}}}}

    `parts` may be absent; such of another size, or with other blocks, are passed over.

    Raises:
        IntegrityError: It is not one.
    """

    def wrong(what: str) -> IntegrityError:
        return IntegrityError(
            f"{url} is not a manifest of a model: {what}. Build it again, or tell the hub's owner.",
            url=url,
            expected='{"files": {path: {"size", "sha256"}}}',
            received=what,
        )

    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise wrong(f"it is no JSON ({error})") from error
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, dict):
        raise wrong("it has no object 'files'")
    entries = {}
    for path, entry in files.items():
        size = entry.get("size") if isinstance(entry, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        try:
            check_path(path)
        except OptionsError as error:
            raise wrong(error.message) from error
        if type(size) is not int or size < 0 or not _is_sha256(sha256):
            raise wrong(f"size and sha256 of {path!r} are {size!r} and {sha256!r}")
        parts = _parts(entry.get("parts"), size)
        if parts is None:
            raise wrong(f"'parts' of {path!r} are not the hashes of its parts")
        entries[path] = FileEntry(size, str(sha256), parts=parts)
    return entries


def _parts(value: Any, size: int) -> tuple[str, ...] | None:
    """The hashes of a manifest's `parts`; None when they are not what they should be."""
    if value is None:
        return ()
    part_size = value.get("size") if isinstance(value, dict) else None
    hashes = value.get("sha256") if isinstance(value, dict) else None
    if type(part_size) is not int or part_size <= 0 or not isinstance(hashes, list):
        return None
    if len(hashes) != -(-size // part_size) or not all(_is_sha256(sha256) for sha256 in hashes):
        return None
    return tuple(hashes) if (part_size, value.get("block")) == (PART_SIZE, BLOCK_SIZE) else ()


def parse_tree(data: bytes, url: str) -> dict[str, FileEntry]:
    """The files of one page of `api/models/{model}/tree/{revision}?recursive=true`.

    Large files (`lfs`) come with their SHA-256, others with the name that git gives them. Files whose names could not
    be asked for are passed over.

    Raises:
        IntegrityError: It is not one.
    """
    try:
        items = json.loads(data)
    except (ValueError, RecursionError):
        items = None
    if not isinstance(items, list):
        raise IntegrityError(
            f"{url} did not answer with a list of files. Try again; if that does not help, tell the hub's owner.",
            url=url,
            expected="a list of files",
            received=data[:80].decode(errors="replace"),
        )
    entries = {}
    for item in items:
        if not isinstance(item, dict) or item.get("type") != "file":
            continue
        path, size, lfs = item.get("path"), item.get("size"), item.get("lfs")
        try:
            check_path(path if isinstance(path, str) else "")
        except OptionsError:
            continue
        if isinstance(lfs, dict) and _is_size(lfs.get("size")) and _is_sha256(lfs.get("oid")):
            entries[str(path)] = FileEntry(lfs["size"], lfs["oid"])
        elif lfs is None and _is_size(size):
            oid = item.get("oid")
            named = isinstance(oid, str) and _GIT_OID.fullmatch(oid)
            entries[str(path)] = FileEntry(int(str(size)), git_oid=str(oid) if named else "")
    return entries


def next_page(link: str | None, url: str) -> str | None:
    """The following page that a `Link` header names (RFC 8288), if it is of the same origin."""
    found = _NEXT_PAGE.search(link or "")
    if found is None:
        return None
    try:
        address = urljoin(url, found[1])
        this, other = urlsplit(url), urlsplit(address)
    except ValueError:
        return None
    return address if (this.scheme, this.netloc) == (other.scheme, other.netloc) else None


def parse_lfs_pointer(data: bytes) -> FileEntry | None:
    """What a pointer of Git LFS says; None when it is something else.

    Source: the Git LFS specification, version 1.
    """
    if not data.startswith(_POINTER_VERSION) or len(data) > LARGEST_POINTER:
        return None
    fields = dict(line.split(" ", 1) for line in data.decode(errors="replace").splitlines() if " " in line)
    oid, size = fields.get("oid", ""), fields.get("size", "")
    sha256 = oid.removeprefix("sha256:")
    if oid == sha256 or not _is_sha256(sha256) or not (size.isascii() and size.isdigit() and len(size) < 16):
        return None
    return FileEntry(int(size), sha256)


def linked_sha256(headers: Mapping[str, str]) -> str:
    """SHA-256 that a header `X-Linked-ETag` of Hugging Face gives; empty when there is none."""
    etag = headers.get("x-linked-etag", "").removeprefix("W/").strip('"')
    return etag if _is_sha256(etag) else ""


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0
