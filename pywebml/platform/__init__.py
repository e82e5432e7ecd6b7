"""The one seam to the outside: everything that Python needs from its surroundings.

`browser.py` implements these protocols through the JavaScript bridge (fetch, IndexedDB, session workers);
`native.py` implements them in CPython (httpx, files, onnxruntime). Nothing else in the package imports `js`,
`pyodide` or `onnxruntime`, or touches the network or the disk.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

STALL_SECONDS = 60.0
"""How long a connection may stay silent, where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is fixed about the surroundings for the life of the interpreter.

    Attributes:
        name: `browser` or `native`.
        base_url: What relative addresses are relative to; empty where there is none.
        cross_origin_isolated: Whether the runtime may use threads.
        hardware_concurrency: Logical processors.
        locale: BCP 47 tag.
        os_name: For filters of settings records; empty when unknown.
        runtime_version: Version of ONNX Runtime that this build can drive. Only a runtime file of exactly this
            version is ever started.
        needs_runtime_file: Whether `start_session_worker` wants the runtime's WASM file.
        settings_root_hash: SHA-256 of the root under which the settings mirror of this build is signed, hexadecimal;
            empty when there is none.
        device_memory: Of the machine, in GiB (browsers tell a coarse number); None when unknown.
        webgpu: Whether the browser has WebGPU.
    """

    name: str
    base_url: str
    cross_origin_isolated: bool
    hardware_concurrency: int
    locale: str
    os_name: str
    runtime_version: str
    needs_runtime_file: bool
    settings_root_hash: str = ""
    device_memory: float | None = None
    webgpu: bool = False


@dataclass(frozen=True, order=True, slots=True)
class BlobKey:
    """Name of a stored file.

    Attributes:
        kind: `model` for hub files, `attachment` for files of settings records.
        owner: For a model `host/path/org/name` of the hub, so that two hubs never collide; for an attachment
            `host/bucket/collection`.
        revision: Of the model; for an attachment the record's id.
        path: Inside the model; for an attachment the file's name.
    """

    kind: str
    owner: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A complete, visible file.

    Attributes:
        key: Its name.
        size: In bytes.
        sha256: Of its bytes, lower-case hexadecimal.
        updated: When it was written, seconds since the epoch.
        metadata: Plain data that its writer left with it (`url`, `etag`, `contentType`, …).
    """

    key: BlobKey
    size: int
    sha256: str
    updated: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreUsage:
    """How much room there is, in bytes.

    Attributes:
        files: Of all visible files.
        drafts: Of unfinished files that can be gone on with.
        available: What can still be written; None when unknown.
    """

    files: int
    drafts: int
    available: int | None


class BlobWriter(Protocol):
    """One file being written. Nobody sees it before `commit`; after `abort`, or a crash, nobody ever does.

    A writer that was opened with a `token` can be suspended, also by a crash or a closed tab: the next writer of the
    same key that is opened with the same token finds what was written.
    """

    async def write(self, data: bytes) -> None:
        """Append bytes to what was written with this method so far."""

    async def present(self) -> list[tuple[int, int]]:
        """What is there: ranges [begin, end) in order, which do not touch each other."""

    async def read(self, begin: int, end: int) -> bytes:
        """Written bytes. Raises `StoreError` where some are missing."""

    async def digest(self, begin: int, end: int) -> str:
        """Hash of written bytes, as `parts.part_hash` has it. Raises `StoreError` where some are missing."""

    async def discard(self, begin: int, end: int) -> None:
        """Forget written bytes, at least these; whole pieces go, so look at `present` afterwards."""

    async def finish(self, sha256: str | None = None) -> tuple[int, str]:
        """Flush; returns (size in bytes, SHA-256 in hexadecimal) for the caller to check before `commit`.

        Args:
            sha256: Of the whole, where the caller has checked it by its parts: it is taken as it is.

        Raises:
            StoreError: There is a hole.
        """

    async def commit(self, metadata: Mapping[str, Any]) -> BlobInfo:
        """Make the file visible in one step, replacing an older one of the same name."""

    async def suspend(self) -> None:
        """Stop, and keep what was written for the next writer with this token. Harmless after `commit` or `abort`."""

    async def abort(self) -> None:
        """Drop what was written. Harmless after `commit`, `suspend` or another `abort`."""


class BlobStore(Protocol):
    """Files by name. Raises `StoreUnavailableError` and `QuotaExceededError`.

    A file of which bytes are missing, because its storage was damaged or partly cleared, is not there: it is passed
    over and removed. Where that shows only when its bytes are read, the reader gets a `DamagedFileError`.
    """

    async def open_writer(self, key: BlobKey, token: str = "") -> BlobWriter:
        """Start writing a file, or go on with one that was suspended.

        Args:
            key: Its name.
            token: Says which bytes these are (an ETag, a hash). What was suspended under another token is dropped.
                Empty: nothing is kept when the writer ends without `commit`. Callers see to it that there is one writer
                of a key and token at a time.
        """

    async def draft(self, key: BlobKey) -> tuple[str, int] | None:
        """Token, and bytes already there, of a writer of this key that is suspended, or at work perhaps elsewhere; None
        when there is none."""

    async def drop_drafts(self, keys: Collection[BlobKey] | None = None) -> None:
        """Remove suspended writers, of these keys or (None) of all that nobody is writing."""

    async def drafts(self) -> Sequence[tuple[BlobKey, int]]:
        """Keys of all writers with a token that are suspended, or at work perhaps elsewhere, and the bytes that are
        already there; those first that nobody has gone on with for the longest time."""

    async def info(self, key: BlobKey) -> BlobInfo | None:
        """What is stored under this name, or None."""

    async def list(self, kind: str) -> list[BlobInfo]:
        """All files of a kind, ordered by key."""

    async def read(self, key: BlobKey) -> bytes:
        """The bytes of a small file. Raises `StoreError` when there is none."""

    async def verify(self, key: BlobKey) -> bool:
        """Whether the stored bytes are all there and still have the SHA-256 they were stored with."""

    async def update(self, metadata: Mapping[BlobKey, Mapping[str, Any]]) -> None:
        """Replace the metadata of files in one step; names that do not exist are passed over."""

    async def delete(self, keys: Collection[BlobKey]) -> None:
        """Remove files, in one step; names that do not exist are passed over."""

    async def usage(self) -> StoreUsage:
        """How much is stored here, and how much more fits."""

    async def persist(self) -> bool:
        """Ask the surroundings never to evict this store; whether that was granted."""


class OutsideFile(Protocol):
    """A file outside the store, which the caller chose."""

    path: str
    """With slashes, below the folder that was chosen; of a file that was chosen itself, its name."""
    size: int

    async def read(self, begin: int, end: int) -> bytes:
        """Some of its bytes. Raises `StoreError` when they cannot be read."""

    async def copy(self, begin: int, end: int, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """Append bytes to `writer`, without holding them all; `on_bytes` gets the size of each piece."""


class DocumentStore(Protocol):
    """Small plain-data documents by name."""

    async def get(self, key: str) -> Any | None:
        """The document, or None."""

    async def put(self, key: str, value: Any) -> None:
        """Write a document (what `json` can write) in one step."""

    async def delete(self, key: str) -> None:
        """Remove a document, if it is there."""


class Response(Protocol):
    """An HTTP answer whose body has not been read yet. Read or close it."""

    url: str
    """Of the answer itself: after redirects."""
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    redirect_headers: Mapping[str, str]
    """Of the redirects on the way, as far as they can be seen here; browsers show none."""

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises `NetworkError` when the connection breaks or the body is longer than `limit`."""

    async def save(
        self,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
        *,
        offset: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Stream the body into `writer`. What has arrived when the connection breaks is written too.

        Args:
            writer: Where to.
            on_bytes: Gets the size of each piece.
            offset: Where the body's first byte belongs; None appends.
            limit: Most bytes to take; a longer body raises `NetworkError`.

        Raises:
            NetworkError: The connection broke.
        """

    async def close(self) -> None:
        """Give up the rest of the body."""


@dataclass(frozen=True, slots=True)
class RangePlan:
    """Ranges of one file that are fetched together, and what every answer has to be.

    Attributes:
        ranges: (begin, end), in the order in which they are wanted.
        size: Bytes of the whole file.
        same: Headers, in lower case, that tell whether an answer is of the same file.
        hashes: (begin, end, `parts.part_hash`) of bytes that are checked as soon as they are there.
        stall_seconds: Most that one range may take.
        slow_seconds: A range that takes longer is the last one.
    """

    ranges: tuple[tuple[int, int], ...]
    size: int
    same: Mapping[str, str]
    hashes: tuple[tuple[int, int, str], ...]
    stall_seconds: float
    slow_seconds: float


class NetworkError(Exception):
    """The connection could not be made, broke, timed out, or was not allowed. Callers turn this into an error
    of the package that says what they were doing."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a model.

    Attributes:
        name: Its name.
        type: ONNX element type: `float32`, `int64`, `string`, …; empty when it is not a tensor.
        shape: A number, or a symbol's name, per dimension.
    """

    name: str
    type: str
    shape: tuple[int | str, ...]


class TensorHandle(Protocol):
    """A tensor that stayed in the runtime's memory. Feed it to a later run, fetch it, or release it."""

    type: str
    shape: tuple[int, ...]

    async def fetch(self) -> Array:
        """Copy it out."""

    def release(self) -> None:
        """Free its memory. Harmless when called again."""


Feed: TypeAlias = "Array | TensorHandle"


class Session(Protocol):
    """A model loaded into the runtime."""

    inputs: Sequence[TensorInfo]
    outputs: Sequence[TensorInfo]
    total_run_ms: float
    """Milliseconds that the runtime itself took in all runs so far, without copies in and out."""

    async def run(
        self,
        feeds: Mapping[str, Feed],
        *,
        outputs: Collection[str] | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Feed]:
        """Run the model.

        Args:
            feeds: Input name to array (see `DTYPES`) or handle. Arrays of Python strings are string tensors.
            outputs: Which outputs to compute; all when None.
            keep: Outputs that stay in the runtime's memory and come back as `TensorHandle`.

        Raises:
            InferenceError: Wrong names, types or shapes, or the runtime failed.
            SessionClosedError: The session or its worker is gone.
        """

    async def release(self) -> None:
        """Free the session. Harmless when called again."""


class SessionWorker(Protocol):
    """A place where sessions live: a Web Worker with its own runtime, or a thread."""

    async def create_session(
        self,
        model: BlobKey,
        *,
        external_data: Mapping[str, BlobKey] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Session:
        """Load a stored model.

        Args:
            model: The `.onnx` file.
            external_data: File name as it stands inside the model, to stored file.
            options: `graphOptimizationLevel` (`disabled`, `basic`, `extended`, `all`),
                `freeDimensionOverrides` (symbol to number), `extra` (the runtime's own configuration entries).

        Raises:
            ModelLoadError: The runtime refuses the model.
            SessionClosedError: The worker is gone.
        """

    async def settle(self, seconds: float) -> bool:
        """Wait until nothing is computing, `seconds` at most; whether that is so. A cancelled run may still be."""

    def terminate(self) -> None:
        """Stop at once, even in the middle of a run; pending calls raise `SessionClosedError`. The memory comes
        back whole. Harmless when called again."""


class Platform(Protocol):
    """Everything outside."""

    @property
    def environment(self) -> Environment:
        """What is fixed about the surroundings."""

    @property
    def blobs(self) -> BlobStore:
        """Files."""

    @property
    def documents(self) -> DocumentStore:
        """Small plain data."""

    async def request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> Response:
        """Send a request and wait for the answer's head. Cookies go to the page's own origin only; a header
        `authorization` goes no further than the origin of `url`, whatever redirects there are.

        Args:
            url: Absolute.
            method: `GET` or `HEAD`.
            headers: Of the request.
            timeout: Most seconds until the answer's head; None: `stall_seconds`.
            stall_seconds: How long the connection may stay silent.

        Raises:
            NetworkError: No answer.
        """

    async def fetch_ranges(
        self,
        url: str,
        plan: RangePlan,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
        *,
        headers: Mapping[str, str],
    ) -> Collection[int]:
        """Fetch ranges of a file into `writer`, as many as come exactly as expected: at the first answer that is not,
        or where the platform has no way of its own, it is over, and the caller goes on with `request`, which tells
        what is the matter. A range is written as a whole or not at all.

        Args:
            url: Absolute.
            plan: What is wanted.
            writer: Where to.
            on_bytes: Gets the size of what has been written, now and then.
            headers: Of every request.

        Returns:
            Beginnings of the plan's `hashes` that were right.

        Raises:
            StoreError: There is no room, or the store cannot be used.
        """

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold a name while in the block: nobody else here, in another tab or in another process on the same store
        has it at the same time. It is free again when its holder ends, however that happens."""

    async def outside_files(self, source: Any) -> list[OutsideFile]:
        """The files of what the caller chose, ordered by path.

        Args:
            source: In CPython the path of a file or folder. In the browser a `File`, a list of them, a
                `FileSystemFileHandle` or a `FileSystemDirectoryHandle`.

        Raises:
            StoreError: It cannot be read.
        """

    async def write_outside(self, target: Any, files: Sequence[tuple[str, Sequence[bytes | BlobKey]]]) -> Any:
        """Write files outside the store, each made of bytes and stored files one after the other.

        Args:
            target: In CPython the path of a folder, or of a file when there is one file whose path is empty. In the
                browser a `FileSystemDirectoryHandle` or `FileSystemFileHandle`; None makes one file a `Blob`.
            files: Path below the folder, and pieces.

        Returns:
            The `Blob`, in the browser, where `target` is None; else None.

        Raises:
            StoreError: It cannot be written, or a stored file is not there.
        """

    async def start_session_worker(self, runtime: BlobKey | None, *, num_threads: int) -> SessionWorker:
        """Start the runtime.

        Args:
            runtime: The stored WASM file; None where `needs_runtime_file` is False.
            num_threads: At least 1. Where threads are not possible, one is used.

        Raises:
            RuntimeStartError: The runtime could not be started.
        """

    async def verify_signature(self, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
        """Whether `signature` is that of `data` by this key. A key that cannot be used has signed nothing.

        Args:
            algorithm: `ecdsa-{p256,p384}-{sha256,sha384}` or `rsassa-pkcs1-v1_5-{sha256,sha384,sha512}`.
            public_key_spki: SubjectPublicKeyInfo, DER.
            signature: For ECDSA r and s one after the other; for RSA its bytes.
            data: What was signed.

        Raises:
            SignatureError: The algorithm is not one of these, or signatures cannot be checked here: browsers do so in
                secure contexts only.
        """

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
    "uint16": np.dtype(np.uint16),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "string": np.dtype(object),
    "bool": np.dtype(np.bool_),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
}
"""ONNX element type to numpy dtype."""


def in_browser() -> bool:
    """Whether this is Pyodide."""
    return sys.platform == "emscripten"


_current: Platform | None = None
_starting: asyncio.Task[Platform] | None = None


async def get_platform() -> Platform:
    """The platform of these surroundings, made on first use.

    Raises:
        RuntimeStartError: The browser's side of it could not be loaded.
    """
    global _current, _starting
    if _current is None:
        if _starting is None or _starting.done():
            _starting = asyncio.ensure_future(_start())
        _current = await asyncio.shield(_starting)
    return _current


async def _start() -> Platform:
    if in_browser():
        from pywebml.platform.browser import BrowserPlatform

        return await BrowserPlatform.load()
    from pywebml.platform.native import NativePlatform

    return NativePlatform()


def set_platform(platform: Platform | None) -> None:
    """Use `platform` from now on; None goes back to the default. For tests and for embedding."""
    global _current, _starting
    _current, _starting = platform, None
