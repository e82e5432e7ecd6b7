"""The folder of the native platform's stores: blobs and documents as files.

Layout below the cache folder:

    blobs/<hash of key>.json          metadata; names its data file; its rename makes a file visible
    blobs/<hash of key>-<unique>.bin  bytes
    documents/<hash of name>.json
    drafts/                           see `native_drafts.py`
    locks/<hash of name>.lock         locked while somebody holds the name
    writers/<unique>.lock             locked while its process lives
    writers/<unique>/                 what that process is still writing
    commit.lock                       locked while somebody changes what is visible
    change.json                       a change of several files that is not through yet

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
import re
import secrets
import shutil
import sys
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pywebml.errors import DamagedFileError, QuotaExceededError, StoreError, StoreUnavailableError
from pywebml.platform import BlobInfo, BlobKey, StoreUsage
from pywebml.platform.native_drafts import KEPT_SECONDS, Drafts
from pywebml.platform.native_locks import FileLock, discard, try_lock

Result = TypeVar("Result")

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Numbers of the errors that say so."""

# A data file can be replaced between reading its metadata and opening it; then the metadata is read again.
_ATTEMPTS = 5
_RECORD_NAME = re.compile(r"[0-9a-f]{64}\.json")


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


def _forget_writer(descriptor: int, lock: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    discard(lock)
    with contextlib.suppress(OSError):
        os.close(descriptor)


class FileStorage:
    """The cache folder itself. All methods block; call them in a thread.

    Args:
        root: The folder. Made on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.drafts = Drafts(root / "drafts", lambda target, text: self.replace(target, text, durable=False))
        self._blobs = root / "blobs"
        self._documents = root / "documents"
        self._locks = root / "locks"
        self._writers = root / "writers"
        self._change = root / "change.json"
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
            if error.errno in NO_ROOM:
                raise QuotaExceededError(
                    f"No room left for {self.root} ({error.strerror}). Free some disk space, delete models "
                    "that are no longer needed, or set PYWEBML_CACHE_DIR to a folder on another disk.",
                    path=str(self.root),
                    available=self._free(),
                ) from error
            raise StoreUnavailableError(
                f"The cache folder {self.root} cannot be used: {error}. Make it writable, or set "
                "PYWEBML_CACHE_DIR to a folder that is.",
                path=str(self.root),
            ) from error

    def _free(self) -> int | None:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.root).free
        return None

    def _open(self) -> None:
        with self._opening:
            if self._scratch is not None and self._scratch.is_dir():
                return
            for folder in (self._blobs, self._documents, self.drafts.folder, self._locks, self._writers):
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
            if try_lock(descriptor, wait=False) and lock.exists():
                folder.mkdir()
                weakref.finalize(self, _forget_writer, descriptor, lock, folder)
                return folder
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what dead writers have left: their folders, old drafts, and data files that no metadata names."""
        for lock in self._writers.glob("*.lock"):
            try:
                descriptor = os.open(lock, os.O_RDWR)
            except OSError:
                continue
            if try_lock(descriptor, wait=False):
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                discard(lock)
            os.close(descriptor)
        # The lock: a commit in another process has its data file in place a moment before its metadata.
        with self.commit_lock():
            named = {record["data"] for record in self._records()}
            for data in self._blobs.glob("*.bin"):
                if data.name not in named and not self.drafts.take_back(data.name.split("-")[0], data):
                    discard(data)
            oldest = time.time() - KEPT_SECONDS
            self.drafts.drop(None, lambda draft, touched: draft.size > 0 and touched >= oldest)

    @contextlib.contextmanager
    def commit_lock(self) -> Iterator[None]:
        """The right to change what is visible, and to give drafts to writers. Changes that a dead process began are
        through when this one has it."""
        descriptor = os.open(self.root / "commit.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            while not try_lock(descriptor, wait=True):
                pass
            self._redo()
            yield
        finally:
            os.close(descriptor)

    def take_name(self, name: str) -> FileLock | None:
        """The lock of a name, or None while somebody has it."""
        return FileLock.take(self._locks / f"{hashlib.sha256(json.dumps(name).encode()).hexdigest()}.lock")

    def scratch_path(self) -> Path:
        """A new name in the folder of this writer."""
        assert self._scratch is not None
        return self._scratch / secrets.token_hex(16)

    @contextlib.contextmanager
    def _written(self, text: str, *, durable: bool = True) -> Iterator[Path]:
        """A small file to be moved to its place."""
        draft = self.scratch_path()
        try:
            with draft.open("x", encoding="utf-8") as file:
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            yield draft
        except BaseException:
            discard(draft)
            raise

    def replace(self, target: Path, text: str, *, durable: bool = True) -> None:
        """Write a small file in one step.

        Args:
            target: Where.
            text: What.
            durable: Whether it is on the disk afterwards, also when the power goes.
        """
        with self._written(text, durable=durable) as draft:
            draft.replace(target)

    # Documents

    def document_path(self, key: str) -> Path:
        """Where a document is."""
        return self._documents / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"

    # Blobs

    def stem(self, key: BlobKey) -> str:
        """What the names of a file's files begin with."""
        return hashlib.sha256(json.dumps(_parts(key)).encode()).hexdigest()

    def _record_path(self, key: BlobKey) -> Path:
        return self._blobs / f"{self.stem(key)}.json"

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
        if self.stem(BlobKey(*key)) != path.stem or not _is_data_of(path.stem, record["data"]):
            return None
        return record

    def _records(self) -> Iterator[dict[str, Any]]:
        for path in self._blobs.glob("*.json"):
            record = self._record_of(path)
            if record is not None:
                yield record

    def _info_of(self, record: Mapping[str, Any] | None) -> BlobInfo | None:
        if record is None:
            return None
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

    def _heal(self, path: Path) -> bool:
        """Remove a file whose metadata are broken or whose bytes are not all there; whether it was one."""
        with self.commit_lock():
            if not path.exists() or self._info_of(self._record_of(path)) is not None:
                return False
            self._remove(path)
            return True

    def _remove(self, path: Path) -> None:
        # The metadata first, so that none is visible without its bytes.
        path.unlink(missing_ok=True)
        for data in self._blobs.glob(f"{path.stem}-*.bin"):
            discard(data)

    def _info_at(self, path: Path) -> BlobInfo | None:
        while path.exists():
            info = self._info_of(self._record_of(path))
            if info is not None:
                return info
            self._heal(path)
        return None

    def info(self, key: BlobKey) -> BlobInfo | None:
        """What is stored under `key`."""
        return self._info_at(self._record_path(key))

    def infos(self, kind: str) -> list[BlobInfo]:
        """Everything of one kind, ordered by key."""
        infos = (self._info_at(path) for path in self._blobs.glob("*.json"))
        return sorted((info for info in infos if info is not None and info.key.kind == kind), key=lambda info: info.key)

    def use(self, key: BlobKey, action: Callable[[Path], Result]) -> Result:
        """Do something with the data file, which may be replaced at any moment before.

        Raises:
            DamagedFileError: Bytes of it were missing; it was removed.
            StoreError: There is none.
        """
        path = self._record_path(key)
        for _ in range(_ATTEMPTS):
            record = self._record_of(path)
            if record is not None and self._info_of(record) is not None:
                with contextlib.suppress(FileNotFoundError):
                    return action(self._blobs / record["data"])
            elif not path.exists():
                break
            elif self._heal(path):
                raise self.damaged(key)
        raise StoreError(
            f"{key.path!r} of {key.owner!r} ({key.revision!r}) is not in the store.", key=list(_parts(key))
        )

    def damaged(self, key: BlobKey) -> DamagedFileError:
        """The error that says so."""
        return DamagedFileError(
            f"Bytes of {key.path!r} of {key.owner!r} ({key.revision!r}) are missing in {self.root}: something else "
            "has changed its files. The file was removed; load it again.",
            key=list(_parts(key)),
        )

    def read(self, key: BlobKey) -> bytes:
        """All bytes."""
        return b"".join(self.blocks(key))

    def blocks(self, key: BlobKey, size: int = 1 << 20) -> Iterator[bytes]:
        """All bytes, `size` at a time, of the file as it is at the beginning."""

        def start(path: Path) -> tuple[BinaryIO, int]:
            file = path.open("rb")
            return file, os.fstat(file.fileno()).st_size

        return self._blocks(key, *self.use(key, start), size)

    def _blocks(self, key: BlobKey, file: BinaryIO, rest: int, size: int) -> Iterator[bytes]:
        with file:
            while rest:
                block = file.read(min(size, rest))
                if not block:
                    self._heal(self._record_path(key))
                    raise self.damaged(key)
                rest -= len(block)
                yield block

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
        stem, target = self.stem(key), self._record_path(key)
        record: dict[str, Any] = {
            "key": list(_parts(key)),
            "data": f"{stem}-{secrets.token_hex(8)}.bin",
            "size": size,
            "sha256": sha256,
            "updated": time.time(),
            "metadata": dict(metadata),
        }
        text, data = _plain(key, record), self._blobs / record["data"]
        with self.commit_lock(), self._written(text) as written:
            older = self._record_of(target)
            draft.replace(data)
            try:
                written.replace(target)
            except BaseException:
                # It stays what it was: something to go on with.
                data.replace(draft)
                raise
            if older is not None:
                discard(self._blobs / older["data"])
        return BlobInfo(key, size, sha256, record["updated"], json.loads(text)["metadata"])

    def remove(self, keys: Collection[BlobKey]) -> None:
        """Delete files in one step."""
        with self.commit_lock():
            paths = {self._record_path(key) for key in keys}
            self._apply({path.name: None for path in paths if path.exists()})

    def update(self, metadata: Mapping[BlobKey, Mapping[str, Any]]) -> None:
        """Replace the metadata of files in one step."""
        for key, value in metadata.items():
            _plain(key, dict(value))
        with self.commit_lock():
            changes: dict[str, str | None] = {}
            for key, value in metadata.items():
                path = self._record_path(key)
                record = self._record_of(path)
                if record is not None:
                    changes[path.name] = _plain(key, {**record, "metadata": dict(value)})
            self._apply(changes)

    def _apply(self, changes: Mapping[str, str | None]) -> None:
        """Write metadata files, or remove files (None): all of them, whenever this process ends."""
        if len(changes) > 1:
            self.replace(self._change, json.dumps(changes))
        for name, text in changes.items():
            path = self._blobs / name
            if text is None:
                self._remove(path)
            else:
                self.replace(path, text)
        self._change.unlink(missing_ok=True)

    def _redo(self) -> None:
        try:
            changes = json.loads(self._change.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (ValueError, RecursionError):
            changes = None
        if isinstance(changes, dict) and all(
            _RECORD_NAME.fullmatch(name) and isinstance(text, str | None) for name, text in changes.items()
        ):
            self._apply(changes)
        discard(self._change)

    def usage(self) -> StoreUsage:
        """How much is stored here, and how much the disk has left."""
        infos = (self._info_of(record) for record in self._records())
        return StoreUsage(
            files=sum(info.size for info in infos if info is not None),
            drafts=sum(draft.size for draft in self.drafts.all()),
            available=self._free(),
        )


def _is_data_of(stem: str, name: str) -> bool:
    return re.fullmatch(rf"{stem}-[0-9a-f]+\.bin", name) is not None


def _plain(key: BlobKey, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"The metadata of {key.path!r} is not plain data: {error}.") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parts(key: BlobKey) -> tuple[str, str, str, str]:
    return key.kind, key.owner, key.revision, key.path


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
