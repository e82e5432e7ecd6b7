"""The one seam to the outside: everything that Python needs from its surroundings.

`browser.py` implements these protocols through the JavaScript bridge (fetch, IndexedDB, session workers);
`native.py` implements them in CPython (httpx, files, onnxruntime). Nothing else in the package imports `js`,
`pyodide` or `onnxruntime`, or touches the network or the disk.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


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


class BlobWriter(Protocol):
    """One file being written. Nobody sees it before `commit`; after `abort`, or a crash, nobody ever does."""

    async def write(self, data: bytes) -> None:
        """Append bytes."""

    async def finish(self) -> tuple[int, str]:
        """Flush; returns (size in bytes, SHA-256 in hexadecimal) for the caller to check before `commit`."""

    async def commit(self, metadata: Mapping[str, Any]) -> BlobInfo:
        """Make the file visible in one step, replacing an older one of the same name."""

    async def abort(self) -> None:
        """Drop what was written. Harmless after `commit` or another `abort`."""


class BlobStore(Protocol):
    """Files by name. Raises `StoreUnavailableError` and `QuotaExceededError`."""

    async def open_writer(self, key: BlobKey) -> BlobWriter:
        """Start writing a file."""

    async def info(self, key: BlobKey) -> BlobInfo | None:
        """What is stored under this name, or None."""

    async def list(self, kind: str) -> list[BlobInfo]:
        """All files of a kind, ordered by key."""

    async def read(self, key: BlobKey) -> bytes:
        """The bytes of a small file. Raises `StoreError` when there is none."""

    async def verify(self, key: BlobKey) -> bool:
        """Whether the stored bytes are all there and still have the SHA-256 they were stored with."""

    async def delete(self, keys: Collection[BlobKey]) -> None:
        """Remove files; names that do not exist are passed over."""

    async def usage(self) -> tuple[int, int]:
        """(bytes used, bytes allowed) by everything stored here; allowed is 0 when unknown."""

    async def persist(self) -> bool:
        """Ask the surroundings never to evict this store; whether that was granted."""


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
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises `NetworkError` when the connection breaks or the body is longer than `limit`."""

    async def save(self, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """Stream the body into `writer`; `on_bytes` gets the size of each piece. Raises `NetworkError`."""

    async def close(self) -> None:
        """Give up the rest of the body."""


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
    ) -> Response:
        """Send a request and wait for the answer's head (`timeout` seconds at most). Cookies go to
        the page's own origin only.

        Raises:
            NetworkError: No answer.
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
