"""The platform in a browser: everything goes through the JavaScript module `pywebml_bridge` (`web/src/bridge`).

Metadata crosses as JSON text, bytes as typed arrays, and nothing element by element.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import js
from pyodide.ffi import JsException, create_proxy, to_js

from pywebml.errors import RuntimeStartError
from pywebml.options import get_configuration
from pywebml.platform import STALL_SECONDS, BlobKey, BlobWriter, Environment, OutsideFile, RangePlan
from pywebml.platform.browser_errors import abortable, crossing, owned
from pywebml.platform.browser_sessions import BrowserSessionWorker
from pywebml.platform.browser_store import (
    LARGEST_OFFSET,
    BrowserBlobStore,
    BrowserBlobWriter,
    BrowserDocumentStore,
    js_key,
    lock,
    outside_files,
    write_outside,
)

BRIDGE_MODULE = "pywebml_bridge"

LONGEST_SECONDS = 2_147_483.0
"""What browsers' timers take at most; whoever waits longer waits for ever."""


class BrowserPlatform:
    """Fetch, IndexedDB and session workers."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge
        values = json.loads(bridge.environment())
        self.environment = Environment(
            name="browser",
            base_url=values["baseUrl"],
            cross_origin_isolated=values["crossOriginIsolated"],
            hardware_concurrency=values["hardwareConcurrency"],
            locale=values["locale"],
            os_name=values["osName"],
            runtime_version=values["runtimeVersion"],
            needs_runtime_file=True,
            settings_root_hash=values["settingsRootHash"],
            device_memory=values["deviceMemory"],
            webgpu=values["webgpu"],
        )
        self.blobs = BrowserBlobStore(bridge)
        self.documents = BrowserDocumentStore(bridge)

    @classmethod
    async def load(cls) -> BrowserPlatform:
        """Find the bridge, or load it.

        The host worker, and pages whose CSP forbids more, register it as a JavaScript module. Elsewhere it is
        imported from `assets_base`, or from the files inside the installed package.

        Raises:
            RuntimeStartError: It could not be loaded.
        """
        try:
            import pywebml_bridge
        except ModuleNotFoundError:
            return cls(await _load_bridge())
        return cls(pywebml_bridge)

    async def request(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> BrowserResponse:
        """See `Platform.request`."""
        controller = js.AbortController.new()
        header_object = to_js(dict(headers or {}), dict_converter=js.Object.fromEntries)
        head, stall = (_milliseconds(limit) for limit in (stall_seconds if timeout is None else timeout, stall_seconds))
        sent = self._bridge.request(url, method, header_object, head, controller.signal, stall)
        try:
            answer = await crossing(sent)
        except asyncio.CancelledError:
            controller.abort()
            raise
        return BrowserResponse(answer, controller)

    async def fetch_ranges(
        self,
        url: str,
        plan: RangePlan,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
        *,
        headers: Mapping[str, str],
    ) -> Collection[int]:
        """See `Platform.fetch_ranges`. All of it is one call into JavaScript."""
        if not isinstance(writer, BrowserBlobWriter):
            raise TypeError("a browser platform fetches into a browser writer")
        controller = js.AbortController.new()
        given = {
            "ranges": plan.ranges,
            "size": plan.size,
            "same": dict(plan.same),
            "hashes": plan.hashes,
            "stallMs": _milliseconds(plan.stall_seconds),
            "slowMs": _milliseconds(plan.slow_seconds),
        }
        callback = create_proxy(on_bytes)
        try:
            fetching = self._bridge.fetchRanges(
                url, json.dumps(dict(headers)), json.dumps(given), writer.proxy, callback, controller.signal
            )
            right: list[int] = json.loads(await abortable(fetching, controller))
        finally:
            callback.destroy()
        return right

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """See `Platform.lock`."""
        return lock(self._bridge, name)

    async def outside_files(self, source: Any) -> list[OutsideFile]:
        """See `Platform.outside_files`."""
        return list(await outside_files(self._bridge, source))

    async def write_outside(self, target: Any, files: Sequence[tuple[str, Sequence[bytes | BlobKey]]]) -> Any:
        """See `Platform.write_outside`."""
        return await write_outside(self._bridge, target, files)

    async def start_session_worker(self, runtime: BlobKey | None, *, num_threads: int) -> BrowserSessionWorker:
        """See `Platform.start_session_worker`."""
        if runtime is None:
            raise RuntimeStartError("The browser needs the runtime's WASM file; this is a fault of the caller.")
        started = self._bridge.startSessionWorker(js_key(runtime), num_threads)
        return BrowserSessionWorker(await owned(started, lambda worker: worker.terminate()))

    async def verify_signature(self, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
        """See `Platform.verify_signature`."""
        pieces = (to_js(piece) for piece in (public_key_spki, signature, data))
        return bool(await crossing(self._bridge.verifySignature(algorithm, *pieces)))

    def now(self) -> float:
        """See `Platform.now`."""
        return time.time()

    def monotonic(self) -> float:
        """See `Platform.monotonic`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Platform.sleep`."""
        await asyncio.sleep(seconds)


class BrowserResponse:
    """A fetch whose body is still to come."""

    def __init__(self, answer: Any, controller: Any) -> None:
        self._answer = answer
        self._controller = controller
        self.url: str = answer.url
        self.status: int = answer.status
        self.headers: Mapping[str, str] = json.loads(answer.headers)
        self.redirect_headers: Mapping[str, str] = {}

    async def read(self, limit: int) -> bytes:
        """See `Response.read`."""
        body = await abortable(self._answer.read(limit), self._controller)
        return bytes(body.to_bytes())

    async def save(
        self,
        writer: BlobWriter,
        on_bytes: Callable[[int], None],
        *,
        offset: int | None = None,
        limit: int | None = None,
    ) -> None:
        """See `Response.save`. The bytes go from the network to IndexedDB without passing through Python."""
        if not isinstance(writer, BrowserBlobWriter):
            raise TypeError("a browser response saves into a browser writer")
        most = None if limit is None else min(limit, LARGEST_OFFSET)
        callback = create_proxy(on_bytes)
        try:
            await abortable(self._answer.save(writer.proxy, callback, offset, most), self._controller)
        finally:
            callback.destroy()

    async def close(self) -> None:
        """See `Response.close`."""
        await crossing(self._answer.close())


def _milliseconds(seconds: float) -> float:
    # Browsers take a timeout of 0 for none.
    return max(1, int(seconds * 1000)) if seconds < LONGEST_SECONDS else 0


async def _load_bridge() -> Any:
    base = get_configuration().assets_base
    if base is not None:
        folder = js.URL.new(base if base.endswith("/") else f"{base}/", _base_url()).href
        bridge_url, worker_url = f"{folder}bridge.mjs", f"{folder}session.mjs"
    else:
        bridge_url, worker_url = _package_file_url("bridge.mjs"), _package_file_url("session.mjs")
    try:
        # An import whose address is only known now cannot be written in Python; where this is forbidden, the page
        # imports the module itself and registers it.
        from pyodide.code import run_js

        module = await run_js("(url) => import(url)")(bridge_url)
        options = {"sessionWorkerUrl": worker_url, "baseUrl": _base_url()}
        return module.createBridge(to_js(options, dict_converter=js.Object.fromEntries))
    except JsException as error:
        raise RuntimeStartError(
            f"The bridge to the browser could not be loaded from {bridge_url} ({error.name}: {error.message}). Check "
            "that configure(assets_base=…) names the folder of bridge.mjs and session.mjs. Where a content security "
            "policy forbids this import, let the page import bridge.mjs, then call "
            f"pyodide.registerJsModule('{BRIDGE_MODULE}', createBridge({{sessionWorkerUrl}})).",
            url=bridge_url,
        ) from None


def _base_url() -> str:
    document = getattr(js, "document", None)
    return str(document.baseURI if document is not None else js.location.href)


def _package_file_url(name: str) -> str:
    try:
        text = importlib.resources.files("pywebml").joinpath("_web", name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RuntimeStartError(
            f"This installation of pywebml has no {name}. Install the wheel that ./build.sh build makes, or call "
            "configure(assets_base=…) with the address of the built files.",
            file=name,
        ) from None
    blob = js.Blob.new(to_js([text]), to_js({"type": "text/javascript"}, dict_converter=js.Object.fromEntries))
    return str(js.URL.createObjectURL(blob))
