"""Files outside the cache folder, in CPython: paths."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pywebml.errors import StoreError
from pywebml.platform import BlobKey, BlobWriter
from pywebml.platform.native_locks import discard
from pywebml.platform.native_store import FileStorage

_BLOCK = 1 << 20


@contextlib.contextmanager
def _named_errors(path: Path, deed: str) -> Iterator[None]:
    try:
        yield
    # A path with a null character in it is a ValueError.
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be {deed}: {error}.", path=str(path)) from error


def _path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise StoreError(f"A {type(value).__name__} is no path; outside the browser files are chosen by their path.")
    return Path(value)


class LocalFile:
    """A file by its path, as long as it was when it was found."""

    def __init__(self, path: str, location: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._location = location

    async def read(self, begin: int, end: int) -> bytes:
        """Some of its bytes."""
        return await asyncio.to_thread(self._read, begin, end)

    def _read(self, begin: int, end: int) -> bytes:
        with _named_errors(self._location, "read"), self._location.open("rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
        if len(data) < end - begin:
            raise StoreError(
                f"{self._location} ends after {begin + len(data)} bytes, before the {end} that were asked for.",
                path=str(self._location),
            )
        return data

    async def copy(self, begin: int, end: int, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """Append bytes to `writer`."""
        for at in range(begin, end, _BLOCK):
            piece = await self.read(at, min(at + _BLOCK, end))
            await writer.write(piece)
            on_bytes(len(piece))


def outside_files(source: Any) -> list[LocalFile]:
    """See `Platform.outside_files`. Blocks. Links to files are followed, links to folders are not."""
    root = _path(source)
    found: list[LocalFile] = []

    def fail(error: OSError) -> None:
        raise error

    with _named_errors(root, "read"):
        if not root.is_dir():
            return [LocalFile(root.name, root, root.stat().st_size)]
        for folder, _, names in os.walk(root, onerror=fail):
            for location in (Path(folder) / name for name in names):
                if location.is_file():
                    path = location.relative_to(root).as_posix()
                    found.append(LocalFile(path, location, location.stat().st_size))
    return sorted(found, key=lambda file: file.path)


class _StoppedError(Exception):
    """Nobody waits for the rest any more."""


async def write_outside(
    storage: FileStorage, target: Any, files: Sequence[tuple[str, Sequence[bytes | BlobKey]]]
) -> None:
    """See `Platform.write_outside`. Each file becomes visible when it is whole."""
    root = _path(target)
    stop = threading.Event()
    writing = asyncio.ensure_future(asyncio.to_thread(_write_all, storage, root, files, stop))
    try:
        await asyncio.shield(writing)
    except asyncio.CancelledError:
        # The thread looks after every block, and takes its unfinished file away.
        stop.set()
        await asyncio.wait([writing])
        with contextlib.suppress(_StoppedError, StoreError):
            writing.result()
        raise


def _write_all(
    storage: FileStorage,
    root: Path,
    files: Sequence[tuple[str, Sequence[bytes | BlobKey]]],
    stop: threading.Event,
) -> None:
    with _named_errors(root, "written"):
        if len(files) == 1 and files[0][0] == "":
            places = [root]
        else:
            root.mkdir(parents=True, exist_ok=True)
            places = [_place(root, path) for path, _ in files]
    if len(set(places)) < len(places):
        raise StoreError(f"Two of the files for {root} have the same path.", path=str(root))
    for place, (_, pieces) in zip(places, files, strict=True):
        _write(storage, place, pieces, stop)


def _place(root: Path, path: str) -> Path:
    """Where a file goes: below `root`, whatever its path says and whichever links are there."""
    parts = path.split("/")
    place = root.joinpath(*parts)
    if (
        PurePosixPath(path).is_absolute()
        or PureWindowsPath(path).drive
        or any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts)
        or not place.parent.resolve().is_relative_to(root.resolve())
    ):
        raise StoreError(f"{path!r} is no path below {root}, so nothing was written.", path=path)
    return place


def _write(storage: FileStorage, place: Path, pieces: Sequence[bytes | BlobKey], stop: threading.Event) -> None:
    draft = place.parent / f".{secrets.token_hex(8)}.part"
    try:
        with _named_errors(place, "written"):
            place.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("xb") as file:
                for piece in pieces:
                    for block in _blocks(storage, piece):
                        if stop.is_set():
                            raise _StoppedError
                        file.write(block)
            draft.replace(place)
    except BaseException:
        discard(draft)
        raise


def _blocks(storage: FileStorage, piece: bytes | BlobKey) -> Iterator[bytes]:
    if isinstance(piece, bytes):
        return iter((piece,))
    return storage.block(lambda: storage.blocks(piece))
