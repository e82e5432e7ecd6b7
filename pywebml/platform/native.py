"""The platform of CPython: httpx, files and onnxruntime."""

from __future__ import annotations

import asyncio
import importlib.metadata
import locale
import os
import platform
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx

from pywebml.platform import (
    STALL_SECONDS,
    BlobKey,
    BlobStore,
    BlobWriter,
    DocumentStore,
    Environment,
    NetworkError,
    OutsideFile,
    RangePlan,
)
from pywebml.platform.native_blobs import FileBlobStore, FileBlobWriter
from pywebml.platform.native_crypto import verify_signature
from pywebml.platform.native_locks import NameLocks
from pywebml.platform.native_outside import outside_files, write_outside
from pywebml.platform.native_sessions import NativeSessionWorker
from pywebml.platform.native_store import FileDocumentStore, FileStorage, default_cache_dir

_CONNECT_SECONDS = 30.0
_MOST_REDIRECTS = 20
_OS_NAMES = {"Windows": "WINNT"}


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.TimeoutException, TimeoutError) as error:
        raise NetworkError(f"{url} did not answer in time ({type(error).__name__})") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ssl.SSLError, OSError) as error:
        # Callers go on after it.
        raise NetworkError(f"{url}: {str(error).removesuffix('.') or type(error).__name__}") from error


class NativeResponse:
    """An HTTP answer over httpx, with the connection that it came on."""

    def __init__(self, client: httpx.AsyncClient, response: httpx.Response, redirect_headers: dict[str, str]) -> None:
        self.url = str(response.url)
        self.status = response.status_code
        self.headers: Mapping[str, str] = _headers(response)
        self.redirect_headers: Mapping[str, str] = redirect_headers
        self._client = client
        self._response = response

    async def read(self, limit: int) -> bytes:
        """The whole body."""
        body = bytearray()
        try:
            with _network_errors(self.url):
                async for piece in self._response.aiter_bytes():
                    body += piece
                    if len(body) > limit:
                        raise NetworkError(f"{self.url} answered more than the {limit} bytes allowed here")
        finally:
            await self.close()
        return bytes(body)

    async def save(
        self,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
        *,
        offset: int | None = None,
        limit: int | None = None,
    ) -> None:
        """Stream the body into `writer`, each piece as it comes."""
        pieces = self._response.aiter_bytes()
        taken = 0
        try:
            while True:
                # Errors of the writer are the store's own and pass as they are.
                with _network_errors(self.url):
                    piece = await anext(pieces, None)
                if piece is None:
                    return
                fitting = piece if limit is None else piece[: limit - taken]
                if fitting:
                    if offset is None:
                        await writer.write(fitting)
                    else:
                        assert isinstance(writer, FileBlobWriter)
                        await writer.write_at(offset + taken, fitting)
                    taken += len(fitting)
                    on_bytes(len(fitting))
                if len(fitting) < len(piece):
                    raise NetworkError(f"{self.url} answered more than the {limit} bytes allowed here")
        finally:
            await self.close()

    async def close(self) -> None:
        """Give up the rest of the body."""
        await self._client.aclose()


class NativePlatform:
    """Everything outside, in CPython.

    Args:
        cache_dir: Where blobs and documents are kept, made on first use. None: PYWEBML_CACHE_DIR, else
            `pywebml` in the operating system's own place for caches.
        stall_seconds: How long a connection may stay silent, where the request does not say.
    """

    def __init__(self, cache_dir: Path | None = None, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._storage = FileStorage(Path(cache_dir) if cache_dir is not None else default_cache_dir())
        self._stall_seconds = stall_seconds
        self.blobs: BlobStore = FileBlobStore(self._storage)
        self.documents: DocumentStore = FileDocumentStore(self._storage)
        self._locks = NameLocks(lambda name: self._storage.call(lambda: self._storage.take_name(name)))
        self.environment = Environment(
            name="native",
            base_url="",
            cross_origin_isolated=True,
            hardware_concurrency=os.cpu_count() or 1,
            locale=_locale(),
            os_name=_OS_NAMES.get(platform.system(), platform.system()),
            runtime_version=_runtime_version(),
            needs_runtime_file=False,
        )

    async def request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stall_seconds: float | None = None,
    ) -> NativeResponse:
        """Send a request and wait for the answer's head."""
        stall = self._stall_seconds if stall_seconds is None else stall_seconds
        tls = await asyncio.to_thread(_tls_context)
        # A client per request: connections belong to one event loop, and a kept client could meet another.
        client = httpx.AsyncClient(
            verify=tls,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"user-agent": "pywebml"},
            timeout=httpx.Timeout(stall, connect=min(_CONNECT_SECONDS, stall)),
        )
        try:
            with _network_errors(url):
                request = client.build_request(method, url, headers=dict(headers or {}))
                if "range" in request.headers and "accept-encoding" not in httpx.Headers(headers):
                    # Ranges of a compressed body are of no use.
                    request.headers["accept-encoding"] = "identity"
                async with asyncio.timeout(stall if timeout is None else timeout):
                    response, redirect_headers = await _follow(client, request)
        except BaseException:
            await client.aclose()
            raise
        return NativeResponse(client, response, redirect_headers)

    async def fetch_ranges(
        self,
        url: str,
        plan: RangePlan,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
        *,
        headers: Mapping[str, str],
    ) -> Collection[int]:
        """See `Platform.fetch_ranges`. There is no shorter way here than `request`."""
        return ()

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """See `Platform.lock`."""
        return self._locks.hold(name)

    async def outside_files(self, source: Any) -> list[OutsideFile]:
        """See `Platform.outside_files`."""
        return [*await asyncio.to_thread(outside_files, source)]

    async def write_outside(self, target: Any, files: Sequence[tuple[str, Sequence[bytes | BlobKey]]]) -> None:
        """See `Platform.write_outside`."""
        await write_outside(self._storage, target, files)

    async def start_session_worker(self, runtime: BlobKey | None, *, num_threads: int) -> NativeSessionWorker:
        """Start the runtime: the installed onnxruntime, so `runtime` is not looked at."""
        return await NativeSessionWorker.start(self._storage, num_threads)

    async def verify_signature(self, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
        """See `Platform.verify_signature`."""
        return verify_signature(algorithm, public_key_spki, signature, data)

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


async def _follow(client: httpx.AsyncClient, request: httpx.Request) -> tuple[httpx.Response, dict[str, str]]:
    """The answer at the end of all redirects, and the headers of those on the way, of which the first has its word
    before the later ones. Once a redirect leads to another origin, no credentials are sent any more."""
    first = _origin(request.url)
    redirect_headers: dict[str, str] = {}
    for _ in range(_MOST_REDIRECTS + 1):
        response = await client.send(request, stream=True)
        if response.next_request is None:
            return response, redirect_headers
        redirect_headers = {**_headers(response), **redirect_headers}
        request = response.next_request
        if _origin(request.url) != first:
            request.headers.pop("authorization", None)
        await response.aclose()
    raise NetworkError(f"{request.url}: more than {_MOST_REDIRECTS} redirects")


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


@cache
def _tls_context() -> ssl.SSLContext:
    """The certificates, which take a while to read."""
    return httpx.create_ssl_context()


def _locale() -> str:
    name = (locale.getlocale()[0] or "").replace("_", "-")
    # The C locale is no language.
    return name if name and name != "C" else "en-US"


def _runtime_version() -> str:
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return ""
