"""Blobs of the native platform: writing files, also in pieces and with interruptions, and finding them again."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from pywebml.errors import StoreError
from pywebml.platform import BlobInfo, BlobKey, StoreUsage
from pywebml.platform.native_drafts import Draft, Ranges, add_range, cut_range, front, has_range
from pywebml.platform.native_locks import FileLock, discard
from pywebml.platform.native_store import NO_ROOM, FileStorage
from pywebml.platform.parts import PartHash

Result = TypeVar("Result")

_BLOCK = 1 << 20
_JOURNAL_BYTES = 1 << 20
_JOURNAL_SECONDS = 1.0


def _let_go(file: FileIO, scratch: Path | None, lock: FileLock | None) -> None:
    with contextlib.suppress(OSError):
        file.close()
    if scratch is not None:
        discard(scratch)
    if lock is not None:
        lock.release()


async def _to_the_end(work: asyncio.Future[Result]) -> Result:
    """The result of a thread. Who is cancelled meanwhile waits for its end all the same, so that nothing is left
    locked behind them."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


class FileBlobWriter:
    """One file being written: a draft, or without a token a file in this process's own folder.

    Args:
        storage: The folder. The constructor blocks.
        key: Name of the file.
        token: See `BlobStore.open_writer`.
    """

    def __init__(self, storage: FileStorage, key: BlobKey, token: str) -> None:
        self._storage = storage
        self._key = key
        self._stem = storage.stem(key)
        self._token = token
        # Only one thread at a time works on the file: a write whose caller was cancelled goes on in its thread, and
        # `abort` has to wait for it.
        self._guard = threading.Lock()
        self._hash = hashlib.sha256()
        self._hashed = 0
        self._ranges: Ranges = []
        self._unsaved = 0
        self._saved_at = time.monotonic()
        self._finished: tuple[int, str] | None = None
        self._committed: BlobInfo | None = None
        with storage.commit_lock():
            self._draft_lock = self._take_draft()
        if self._draft_lock is None:
            self._path = storage.scratch_path()
            self._file = FileIO(self._path, "x+")
        self._end = front(self._ranges)
        scratch = self._path if self._draft_lock is None else None
        self._close = weakref.finalize(self, _let_go, self._file, scratch, self._draft_lock)

    def _take_draft(self) -> FileLock | None:
        """Go on with what is there, or drop it. Where somebody else is writing it, this writer is on its own, and
        nothing of it is kept."""
        drafts = self._storage.drafts
        lock = drafts.lock(self._stem)
        if lock is None:
            return None
        try:
            older = drafts.load(self._stem)
            if older is None or older.token != self._token:
                drafts.remove(self._stem)
                older = None
            if not self._token:
                lock.release()
                return None
            self._path = drafts.data(self._stem)
            self._file = FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600), "r+")
            if older is not None:
                self._ranges = older.ranges
                # Somebody has touched it.
                drafts.save(self._stem, older)
        except BaseException:
            lock.release()
            raise
        return lock

    async def write(self, data: bytes) -> None:
        """Append bytes: after going on with a draft, behind what is there from the beginning without a hole."""

        def work() -> None:
            with self._guard:
                self._check_writable()
                self._put(self._end, data)
                self._end += len(data)

        await self._storage.call(work)

    async def write_at(self, offset: int, data: bytes) -> None:
        """Write bytes at their place."""

        def work() -> None:
            with self._guard:
                self._check_writable()
                self._put(offset, data)

        await self._storage.call(work)

    def _put(self, offset: int, data: bytes) -> None:
        rest = memoryview(data)
        self._file.seek(offset)
        while rest:
            count = self._file.write(rest) or 0
            if offset < self._hashed:
                self._forget_hash()
            if offset == self._hashed:
                self._hash.update(rest[:count])
                self._hashed += count
            self._ranges = add_range(self._ranges, offset, offset + count)
            offset, rest = offset + count, rest[count:]
            self._unsaved += count
        if self._unsaved >= _JOURNAL_BYTES or (self._unsaved and time.monotonic() - self._saved_at >= _JOURNAL_SECONDS):
            self._save_journal()

    def _forget_hash(self) -> None:
        self._hash = hashlib.sha256()
        self._hashed = 0

    def _save_journal(self) -> None:
        if self._draft_lock is not None:
            self._storage.drafts.save(self._stem, Draft(self._key, self._token, self._ranges))
            self._unsaved = 0
            self._saved_at = time.monotonic()

    async def present(self) -> list[tuple[int, int]]:
        """What is there."""

        def work() -> list[tuple[int, int]]:
            with self._guard:
                self._check_open()
                return list(self._ranges)

        return await self._storage.call(work)

    async def read(self, begin: int, end: int) -> bytes:
        """Written bytes."""

        def work() -> bytes:
            pieces: list[bytes] = []
            self._each_block(begin, end, pieces.append)
            return b"".join(pieces)

        return await self._storage.call(work)

    async def digest(self, begin: int, end: int) -> str:
        """See `BlobWriter.digest`."""

        def work() -> str:
            digest = PartHash()
            self._each_block(begin, end, digest.update)
            return digest.hexdigest()

        return await self._storage.call(work)

    def _each_block(self, begin: int, end: int, action: Callable[[bytes], None]) -> None:
        """Hand over written bytes. Others write between two blocks."""
        if not 0 <= begin <= end:
            raise StoreError(f"[{begin}, {end}) is no range of {self._key.path!r}.")
        at = begin
        while True:
            with self._guard:
                self._check_open()
                if not has_range(self._ranges, at, end):
                    raise self._missing(at, end)
                if at == end:
                    return
                self._file.seek(at)
                block = self._file.read(min(_BLOCK, end - at)) or b""
            if not block:
                raise StoreError(f"{self._path} was cut off from outside while {self._key.path!r} was written to it.")
            action(block)
            at += len(block)

    def _missing(self, begin: int, end: int) -> StoreError:
        holes = cut_range([(begin, end)], 0, 0)
        for present in self._ranges:
            holes = cut_range(holes, *present)
        return StoreError(
            f"Of the bytes {begin} to {end} of {self._key.path!r} these were not written: "
            + ", ".join(f"{b} to {e}" for b, e in holes)
            + ".",
            key=[self._key.kind, self._key.owner, self._key.revision, self._key.path],
        )

    async def discard(self, begin: int, end: int) -> None:
        """Forget written bytes: exactly these."""

        def work() -> None:
            with self._guard:
                self._check_writable()
                self._ranges = cut_range(self._ranges, begin, end)
                if begin < self._hashed:
                    self._forget_hash()
                self._end = min(self._end, front(self._ranges))
                self._save_journal()

        await self._storage.call(work)

    async def finish(self, sha256: str | None = None) -> tuple[int, str]:
        """Flush to the disk; returns (size, SHA-256)."""

        def work() -> tuple[int, str]:
            with self._guard:
                self._check_open()
                if self._finished is not None:
                    return self._finished
                size = self._ranges[-1][1] if self._ranges else 0
                if not has_range(self._ranges, 0, size):
                    raise self._missing(0, size)
                digest, at = self._hash.copy(), self._hashed
            if sha256 is None:
                self._each_block(at, size, digest.update)
            with self._guard:
                self._check_writable()
                # Beyond the end can be bytes that were discarded, or never came into the journal.
                self._file.truncate(size)
                os.fsync(self._file.fileno())
                self._save_journal()
                self._finished = size, digest.hexdigest() if sha256 is None else sha256
                return self._finished

        if self._committed is not None:
            return self._committed.size, self._committed.sha256
        return await self._storage.call(work)

    async def commit(self, metadata: Mapping[str, Any]) -> BlobInfo:
        """Make the file visible."""
        size, digest = await self.finish()

        def work() -> BlobInfo:
            with self._guard:
                if self._committed is None:
                    self._check_open()
                    # Before its name changes, for systems that do not rename open files.
                    self._file.close()
                    self._committed = self._storage.publish(self._key, self._path, size, digest, metadata)
                    self._end_draft(keep=False)
                return self._committed

        return await self._storage.call(work)

    async def suspend(self) -> None:
        """Stop, and keep what was written if there is a token."""

        def work() -> None:
            with self._guard:
                self._end_draft(keep=True)

        await _to_the_end(asyncio.ensure_future(asyncio.to_thread(work)))

    async def abort(self) -> None:
        """Drop what was written."""

        def work() -> None:
            with self._guard:
                self._end_draft(keep=False)

        await _to_the_end(asyncio.ensure_future(asyncio.to_thread(work)))

    def drop(self) -> None:
        """End without a change: nobody has had this writer."""
        self._close()

    def _end_draft(self, *, keep: bool) -> None:
        if not self._close.alive:
            return
        try:
            if self._draft_lock is not None:
                if keep and self._ranges:
                    self._save_last_journal()
                else:
                    self._file.close()
                    with contextlib.suppress(OSError):
                        self._storage.drafts.remove(self._stem)
        finally:
            self._close()

    def _save_last_journal(self) -> None:
        try:
            self._storage.block(self._save_journal)
        except StoreError as error:
            # The disk that is full has the journal of some bytes before, which is still true.
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in NO_ROOM:
                raise

    def _check_open(self) -> None:
        if not self._close.alive:
            raise StoreError(f"The writer of {self._key.path!r} has ended: it was committed, suspended or given up.")

    def _check_writable(self) -> None:
        self._check_open()
        if self._finished is not None:
            raise StoreError(f"The file {self._key.path!r} is finished: it cannot be changed any more.")


def _drop(opening: asyncio.Future[FileBlobWriter]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().drop()


class FileBlobStore:
    """`BlobStore` over a folder."""

    def __init__(self, storage: FileStorage) -> None:
        self._storage = storage

    async def open_writer(self, key: BlobKey, token: str = "") -> FileBlobWriter:
        """Start writing a file, or go on."""
        opening = asyncio.ensure_future(self._storage.call(lambda: FileBlobWriter(self._storage, key, token)))
        try:
            return await _to_the_end(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_drop)
            # Callbacks run in the loop's next turn.
            await asyncio.sleep(0)
            raise

    async def draft(self, key: BlobKey) -> tuple[str, int] | None:
        """Token and size of a suspended writer."""
        draft = await self._storage.call(lambda: self._storage.drafts.load(self._storage.stem(key)))
        return (draft.token, draft.size) if draft is not None and draft.size else None

    async def drop_drafts(self, keys: Collection[BlobKey] | None = None) -> None:
        """Remove suspended writers."""
        stems = None if keys is None else [self._storage.stem(key) for key in keys]

        def work() -> None:
            with self._storage.commit_lock():
                self._storage.drafts.drop(stems)

        await self._storage.call(work)

    async def drafts(self) -> Sequence[tuple[BlobKey, int]]:
        """Keys and sizes of suspended writers."""
        drafts = await self._storage.call(lambda: tuple(self._storage.drafts.all()))
        return [(draft.key, draft.size) for draft in drafts if draft.size]

    async def info(self, key: BlobKey) -> BlobInfo | None:
        """What is stored under this name."""
        return await self._storage.call(lambda: self._storage.info(key))

    async def list(self, kind: str) -> list[BlobInfo]:
        """All files of a kind, ordered by key."""
        return await self._storage.call(lambda: self._storage.infos(kind))

    async def read(self, key: BlobKey) -> bytes:
        """The bytes of a small file."""
        return await self._storage.call(lambda: self._storage.read(key))

    async def verify(self, key: BlobKey) -> bool:
        """Whether the bytes still are what was stored."""
        return await self._storage.call(lambda: self._storage.verify(key))

    async def update(self, metadata: Mapping[BlobKey, Mapping[str, Any]]) -> None:
        """Replace the metadata of files."""
        await self._storage.call(lambda: self._storage.update(metadata))

    async def delete(self, keys: Collection[BlobKey]) -> None:
        """Remove files."""
        await self._storage.call(lambda: self._storage.remove(keys))

    async def usage(self) -> StoreUsage:
        """How much is stored here, and how much the disk has left."""
        return await self._storage.call(self._storage.usage)

    async def persist(self) -> bool:
        """True: nobody evicts files of a folder."""
        return True
