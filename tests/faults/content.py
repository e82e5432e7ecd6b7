"""What is served: files, bytes, and big files that are made up while they are sent. Nothing is ever read whole."""

from __future__ import annotations

import hashlib
import mimetypes
import random
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

BLOCK = 64 * 1024
PAGE_SIZE = 4096
PATTERN_SIZE = 1024 * 1024
# Files up to here are hashed at every request: two versions can have the same size and time.
ALWAYS_HASHED = 1024 * 1024
# The time of everything that is no file.
MODIFIED = 1_700_000_000.0
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}


def media_type(name: str) -> str:
    """The Content-Type of a file name."""
    return TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


@lru_cache(maxsize=8)
def _pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(PATTERN_SIZE)


def synthetic_bytes(seed: int, begin: int, end: int) -> bytes:
    """Bytes `begin` to `end` (without it) of the made-up content of a seed.

    One seeded block of 1 MiB over and over; the first 8 bytes of every page of 4096 bytes are the page's number
    (little-endian), so that no two pages are equal.
    """
    if end <= begin:
        return b""
    first = begin // PAGE_SIZE
    pattern = _pattern(seed)
    data = bytearray()
    at, stop = first * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
    while at < stop:
        offset = at % PATTERN_SIZE
        piece = pattern[offset : offset + min(PATTERN_SIZE - offset, stop - at)]
        data += piece
        at += len(piece)
    for index in range(len(data) // PAGE_SIZE):
        struct.pack_into("<Q", data, index * PAGE_SIZE, first + index)
    return bytes(memoryview(data)[begin - first * PAGE_SIZE : end - first * PAGE_SIZE])


@lru_cache(maxsize=64)
def synthetic_sha256(seed: int, size: int) -> str:
    """SHA-256 (hex) of the first `size` bytes of the made-up content of a seed."""
    digest = hashlib.sha256()
    for begin in range(0, size, PATTERN_SIZE):
        digest.update(synthetic_bytes(seed, begin, min(begin + PATTERN_SIZE, size)))
    return digest.hexdigest()


@dataclass(frozen=True)
class Synthetic:
    """A made-up file: its size in bytes and the seed of its content."""

    size: int
    seed: int = 0


@dataclass(frozen=True)
class Content(ABC):
    """Bytes of a known size, with what the headers say about them. `etag` is in quotes."""

    size: int
    etag: str
    media_type: str
    modified: float

    @abstractmethod
    def read(self, begin: int, end: int) -> Iterator[bytes]:
        """These bytes in blocks of at most 64 KiB."""


@dataclass(frozen=True)
class BytesContent(Content):
    data: bytes

    @classmethod
    def of(cls, data: bytes, kind: str, etag: str | None = None, modified: float = MODIFIED) -> BytesContent:
        return cls(len(data), etag or quoted(hashlib.sha256(data).hexdigest()), kind, modified, data)

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        for at in range(begin, end, BLOCK):
            yield self.data[at : min(at + BLOCK, end)]


@dataclass(frozen=True)
class SyntheticContent(Content):
    seed: int

    @classmethod
    def of(cls, file: Synthetic, kind: str, etag: str | None = None, modified: float = MODIFIED) -> SyntheticContent:
        own = quoted(hashlib.sha256(f"synthetic {file.seed} {file.size}".encode()).hexdigest())
        return cls(file.size, etag or own, kind, modified, file.seed)

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        for at in range(begin, end, BLOCK):
            yield synthetic_bytes(self.seed, at, min(at + BLOCK, end))


@dataclass(frozen=True)
class FileContent(Content):
    path: Path

    @classmethod
    def of(cls, path: Path, kind: str | None = None, etag: str | None = None) -> FileContent:
        status = path.stat()
        tag = etag or quoted(file_sha256(path))
        return cls(status.st_size, tag, kind or media_type(path.name), status.st_mtime, path)

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(begin)
            while begin < end and (block := file.read(min(BLOCK, end - begin))):
                begin += len(block)
                yield block


@dataclass(frozen=True)
class FlippedContent(Content):
    """Another content with the byte `at` inverted."""

    inner: Content
    at: int

    @classmethod
    def of(cls, inner: Content, at: int) -> FlippedContent:
        return cls(inner.size, inner.etag, inner.media_type, inner.modified, inner, at)

    def read(self, begin: int, end: int) -> Iterator[bytes]:
        for block in self.inner.read(begin, end):
            if begin <= self.at < begin + len(block):
                changed = bytearray(block)
                changed[self.at - begin] ^= 0xFF
                yield bytes(changed)
            else:
                yield block
            begin += len(block)


Source = bytes | str | Path | Synthetic


def content_of(source: Source, kind: str, etag: str | None = None) -> Content:
    """What a test gave: bytes, a text, the path of a file, or a made-up file."""
    if isinstance(source, Synthetic):
        return SyntheticContent.of(source, kind, etag)
    if isinstance(source, Path):
        return FileContent.of(source, kind, etag)
    return BytesContent.of(source.encode() if isinstance(source, str) else source, kind, etag)


def source_sha256(source: Source) -> str:
    """SHA-256 (hex) of what a test gave."""
    if isinstance(source, Synthetic):
        return synthetic_sha256(source.seed, source.size)
    if isinstance(source, Path):
        return file_sha256(source)
    return hashlib.sha256(source.encode() if isinstance(source, str) else source).hexdigest()


def quoted(digest: str) -> str:
    return f'"{digest[:32]}"'


_hashes: dict[Path, tuple[int, int, str]] = {}
_hashing = threading.Lock()


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file; of big files it is remembered while path, time and size stay."""
    with _hashing:
        status = path.stat()
        known = _hashes.get(path)
        if known and known[:2] == (status.st_mtime_ns, status.st_size):
            return known[2]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if status.st_size > ALWAYS_HASHED:
            _hashes[path] = (status.st_mtime_ns, status.st_size, digest)
        return digest


def forget_hash(path: Path) -> None:
    """The file was written: two versions can have the same time."""
    with _hashing:
        _hashes.pop(path.resolve(), None)
