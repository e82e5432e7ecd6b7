"""Blobs and documents as files: the store of the native platform.

Layout below the cache folder:

    blobs/<hash of key>.json          metadata; names its data file; its rename makes a file visible
    blobs/<hash of key>-<unique>.bin  bytes
    documents/<hash of name>.json
    writers/<unique>.lock             locked while its process lives
    writers/<unique>/                 what that process is still writing

File names are hashes, so that no key can leave the folder, grow too long, or meet another one on a file
system that ignores case.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from pywebml.errors import QuotaExceededError, StoreError, StoreUnavailableError
from pywebml.platform import BlobInfo, BlobKey

Result = TypeVar("Result")

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# A data file can be replaced between reading its metadata and opening it; then the metadata is read again.
_ATTEMPTS = 5


def default_cache_dir() -> Path:
    """PYWEBML_CACHE_DIR, else `pywebml` in the operating system's own place for caches."""
    chosen = os.environ.get("PYWEBML_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "pywebml"


def _try_lock(descriptor: int, *, wait: bool) -> bool:
    """Lock a file while `descriptor` is open, against other processes and other descriptors."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in {errno.EDEADLK, errno.EAGAIN}:
            return False
        raise
    return True


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _forget_writer(descriptor: int, lock: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    _discard(lock)
    with contextlib.suppress(OSError):
        os.close(descriptor)


class FileStorage:
    """The cache folder itself. All methods block; call them in a thread.

    Args:
        root: The folder. Made on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs"
        self._documents = root / "documents"
        self._writers = root / "writers"
        self._opening = threading.Lock()
        self._scratch: Path | None = None

    async def call(self, work: Callable[[], Result]) -> Result:
        """Do `work` in a thread, as `block` does."""
        return await asyncio.to_thread(self.block, work)

    def block(self, work: Callable[[], Result]) -> Result:
        """Do `work` with the folder open, and name what went wrong."""
        with self._named_errors():
            self._open()
            return work()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise QuotaExceededError(
                    f"No room left for {self.root} ({error.strerror}). Free some disk space, delete models "
                    "that are no longer needed, or set PYWEBML_CACHE_DIR to a folder on another disk.",
                    path=str(self.root),
                ) from error
            raise StoreUnavailableError(
                f"The cache folder {self.root} cannot be used: {error}. Make it writable, or set "
                "PYWEBML_CACHE_DIR to a folder that is.",
                path=str(self.root),
            ) from error

    def _open(self) -> None:
        with self._opening:
            if self._scratch is not None and self._scratch.is_dir():
                return
            for folder in (self._blobs, self._documents, self._writers):
                folder.mkdir(parents=True, exist_ok=True)
            self._scratch = self._register_writer()
            self._sweep()

    def _register_writer(self) -> Path:
        """A folder of our own, whose lock tells others that we live."""
        while True:
            name = secrets.token_hex(16)
            lock, folder = self._writers / f"{name}.lock", self._writers / name
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
            # Another process can take the fresh file for a dead writer's before we hold its lock. Then it is
            # gone, or locked, and we take another name.
            if _try_lock(descriptor, wait=False) and lock.exists():
                folder.mkdir()
                weakref.finalize(self, _forget_writer, descriptor, lock, folder)
                return folder
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what dead writers have left: their folders, and data files that no metadata names."""
        for lock in self._writers.glob("*.lock"):
            try:
                descriptor = os.open(lock, os.O_RDWR)
            except OSError:
                continue
            if _try_lock(descriptor, wait=False):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                _discard(lock)
            os.close(descriptor)
        # The lock: a commit in another process has its data file in place a moment before its metadata.
        with self._commit_lock():
            named = {record["data"] for record in self._records()}
            for data in self._blobs.glob("*.bin"):
                if data.name not in named:
                    _discard(data)

    @contextlib.contextmanager
    def _commit_lock(self) -> Iterator[None]:
        descriptor = os.open(self.root / "commit.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            while not _try_lock(descriptor, wait=True):
                pass
            yield
        finally:
            os.close(descriptor)

    def scratch_path(self) -> Path:
        """A new name in the folder of this writer."""
        assert self._scratch is not None
        return self._scratch / secrets.token_hex(16)

    def replace(self, target: Path, text: str) -> None:
        """Write a small file in one step."""
        draft = self.scratch_path()
        try:
            with draft.open("x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        except BaseException:
            _discard(draft)
            raise

    # Documents

    def document_path(self, key: str) -> Path:
        """Where a document is."""
        return self._documents / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"

    # Blobs

    def _stem(self, key: BlobKey) -> str:
        name = json.dumps([key.kind, key.owner, key.revision, key.path])
        return hashlib.sha256(name.encode()).hexdigest()

    def _record_of(self, path: Path) -> dict[str, Any] | None:
        """A metadata file whose every field is as we write it, else None: a broken one is no file."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            return None
        wanted = {"key": list, "data": str, "size": int, "sha256": str, "updated": float, "metadata": dict}
        if not isinstance(record, dict) or any(not isinstance(record.get(name), kind) for name, kind in wanted.items()):
            return None
        key = record["key"]
        if len(key) != 4 or any(not isinstance(part, str) for part in key):
            return None
        if self._stem(BlobKey(*key)) != path.stem or not record["data"].startswith(f"{path.stem}-"):
            return None
        return record

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in self._blobs.glob("*.json"):
            record = self._record_of(path)
            if record is not None:
                yield record

    def _info_of(self, record: Mapping[str, Any]) -> BlobInfo | None:
        # A data file of another size was cut off or changed from outside, and is as good as none.
        try:
            if (self._blobs / record["data"]).stat().st_size != record["size"]:
                return None
        except FileNotFoundError:
            return None
        return BlobInfo(
            key=BlobKey(*record["key"]),
            size=record["size"],
            sha256=record["sha256"],
            updated=record["updated"],
            metadata=record["metadata"],
        )

    def info(self, key: BlobKey) -> BlobInfo | None:
        """What is stored under `key`."""
        for _ in range(_ATTEMPTS):
            record = self._record_of(self._blobs / f"{self._stem(key)}.json")
            if record is None:
                return None
            info = self._info_of(record)
            if info is not None:
                return info
        return None

    def infos(self, kind: str) -> list[BlobInfo]:
        """Everything of one kind, ordered by key."""
        infos = (self._info_of(record) for record in self._records() if record["key"][0] == kind)
        return sorted((info for info in infos if info is not None), key=lambda info: info.key)

    def use(self, key: BlobKey, action: Callable[[Path], Result]) -> Result:
        """Do something with the data file, which may be replaced at any moment before."""
        for _ in range(_ATTEMPTS):
            record = self._record_of(self._blobs / f"{self._stem(key)}.json")
            if record is None:
                break
            if self._info_of(record) is None:
                continue
            with contextlib.suppress(FileNotFoundError):
                return action(self._blobs / record["data"])
        raise StoreError(
            f"{key.path!r} of {key.owner!r} ({key.revision!r}) is not in the store.", key=list(_parts(key))
        )

    def verify(self, key: BlobKey) -> bool:
        """Whether the bytes still are what was stored."""
        while (info := self.info(key)) is not None:
            try:
                digest = self.use(key, _sha256)
            except StoreError:
                return False
            # A file that was replaced in between is looked at anew.
            if digest == info.sha256 or self.info(key) == info:
                return digest == info.sha256
        return False

    def publish(self, key: BlobKey, draft: Path, size: int, sha256: str, metadata: Mapping[str, Any]) -> BlobInfo:
        """Make a written file visible, in place of an older one."""
        stem = self._stem(key)
        record: dict[str, Any] = {
            "key": list(_parts(key)),
            "data": f"{stem}-{secrets.token_hex(8)}.bin",
            "size": size,
            "sha256": sha256,
            "updated": time.time(),
            "metadata": dict(metadata),
        }
        try:
            text = json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"The metadata of {key.path!r} is not plain data: {error}.") from error
        target, data = self._blobs / f"{stem}.json", self._blobs / record["data"]
        with self._commit_lock():
            older = self._record_of(target)
            draft.replace(data)
            try:
                self.replace(target, text)
            except BaseException:
                _discard(data)
                raise
            if older is not None:
                _discard(self._blobs / older["data"])
        return BlobInfo(key, size, sha256, record["updated"], json.loads(text)["metadata"])

    def remove(self, keys: Collection[BlobKey]) -> None:
        """Delete files: the metadata first, so that none is visible without its bytes."""
        with self._commit_lock():
            for key in keys:
                target = self._blobs / f"{self._stem(key)}.json"
                record = self._record_of(target)
                target.unlink(missing_ok=True)
                if record is not None:
                    _discard(self._blobs / record["data"])

    def usage(self) -> tuple[int, int]:
        """(bytes used here, bytes used here and free on the disk)."""
        used = sum(record["size"] for record in self._records())
        return used, used + shutil.disk_usage(self.root).free


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parts(key: BlobKey) -> tuple[str, str, str, str]:
    return key.kind, key.owner, key.revision, key.path


def _close_draft(file: FileIO, path: Path) -> None:
    with contextlib.suppress(OSError):
        file.close()
    _discard(path)


class FileBlobWriter:
    """One file being written, in this process's own folder until `commit`."""

    def __init__(self, storage: FileStorage, key: BlobKey, path: Path) -> None:
        self._storage = storage
        self._key = key
        self._path = path
        self._file = FileIO(path, "x")
        # Only one thread works on the file: a write whose caller was cancelled goes on in its thread, and
        # `abort` has to wait for it.
        self._lock = threading.Lock()
        self._close = weakref.finalize(self, _close_draft, self._file, path)
        self._hash = hashlib.sha256()
        self._size = 0
        self._finished = False
        self._committed: BlobInfo | None = None

    async def write(self, data: bytes) -> None:
        """Append bytes."""

        def work() -> None:
            with self._lock:
                self._check_open()
                rest = memoryview(data)
                while rest:
                    count = self._file.write(rest) or 0
                    self._hash.update(rest[:count])
                    self._size += count
                    rest = rest[count:]

        await self._storage.call(work)

    async def finish(self) -> tuple[int, str]:
        """Flush to the disk; returns (size, SHA-256)."""

        def work() -> tuple[int, str]:
            with self._lock:
                if not self._finished:
                    self._check_open()
                    os.fsync(self._file.fileno())
                    self._file.close()
                    self._finished = True
                return self._size, self._hash.hexdigest()

        return await self._storage.call(work)

    async def commit(self, metadata: Mapping[str, Any]) -> BlobInfo:
        """Make the file visible."""
        await self.finish()

        def work() -> BlobInfo:
            with self._lock:
                if self._committed is None:
                    if not self._close.alive:
                        raise StoreError(f"The file {self._key.path!r} was given up and cannot be committed.")
                    digest = self._hash.hexdigest()
                    self._committed = self._storage.publish(self._key, self._path, self._size, digest, metadata)
                    self._close()
                return self._committed

        return await self._storage.call(work)

    async def abort(self) -> None:
        """Drop what was written."""

        def work() -> None:
            with self._lock:
                self._close()

        await asyncio.to_thread(work)

    def _check_open(self) -> None:
        if self._finished or not self._close.alive:
            raise StoreError(f"The file {self._key.path!r} is finished or given up: nothing can be written to it.")


class FileBlobStore:
    """`BlobStore` over a folder."""

    def __init__(self, storage: FileStorage) -> None:
        self._storage = storage

    async def open_writer(self, key: BlobKey) -> FileBlobWriter:
        """Start writing a file."""
        return await self._storage.call(lambda: FileBlobWriter(self._storage, key, self._storage.scratch_path()))

    async def info(self, key: BlobKey) -> BlobInfo | None:
        """What is stored under this name."""
        return await self._storage.call(lambda: self._storage.info(key))

    async def list(self, kind: str) -> list[BlobInfo]:
        """All files of a kind, ordered by key."""
        return await self._storage.call(lambda: self._storage.infos(kind))

    async def read(self, key: BlobKey) -> bytes:
        """The bytes of a small file."""
        return await self._storage.call(lambda: self._storage.use(key, Path.read_bytes))

    async def verify(self, key: BlobKey) -> bool:
        """Whether the bytes still are what was stored."""
        return await self._storage.call(lambda: self._storage.verify(key))

    async def delete(self, keys: Collection[BlobKey]) -> None:
        """Remove files."""
        await self._storage.call(lambda: self._storage.remove(keys))

    async def usage(self) -> tuple[int, int]:
        """(bytes used, bytes allowed: used plus what is free on the disk)."""
        return await self._storage.call(self._storage.usage)

    async def persist(self) -> bool:
        """True: nobody evicts files of a folder."""
        return True


class FileDocumentStore:
    """`DocumentStore` over a folder: one JSON file per document."""

    def __init__(self, storage: FileStorage) -> None:
        self._storage = storage

    async def get(self, key: str) -> Any | None:
        """The document, or None; a broken file is none."""

        def work() -> Any | None:
            try:
                stored = json.loads(self._storage.document_path(key).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError, RecursionError):
                return None
            return stored["value"] if isinstance(stored, dict) and stored.get("key") == key else None

        return await self._storage.call(work)

    async def put(self, key: str, value: Any) -> None:
        """Write a document in one step."""
        try:
            text = json.dumps({"key": key, "value": value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"The document {key!r} is not plain data: {error}.") from error
        await self._storage.call(lambda: self._storage.replace(self._storage.document_path(key), text))

    async def delete(self, key: str) -> None:
        """Remove a document."""
        await self._storage.call(lambda: self._storage.document_path(key).unlink(missing_ok=True))
