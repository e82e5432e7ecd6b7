"""The platform in a browser: everything goes through the JavaScript module `pywebml_bridge` (`web/src/bridge`).

Metadata crosses as JSON text, bytes as typed arrays, and nothing element by element.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple
from typing import Any

import js
from pyodide.ffi import JsException, create_proxy, to_js

from pywebml.errors import RuntimeStartError, StoreError
from pywebml.options import get_configuration
from pywebml.platform import (
    BlobInfo,
    BlobKey,
    BlobWriter,
    Environment,
)
from pywebml.platform.browser_errors import crossing
from pywebml.platform.browser_sessions import BrowserSessionWorker

BRIDGE_MODULE = "pywebml_bridge"


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
    ) -> BrowserResponse:
        """See `Platform.request`."""
        controller = js.AbortController.new()
        header_object = to_js(dict(headers or {}), dict_converter=js.Object.fromEntries)
        milliseconds = 0 if timeout is None else int(timeout * 1000)
        try:
            answer = await crossing(self._bridge.request(url, method, header_object, milliseconds, controller.signal))
        except asyncio.CancelledError:
            controller.abort()
            raise
        return BrowserResponse(answer, controller)

    async def start_session_worker(self, runtime: BlobKey | None, *, num_threads: int) -> BrowserSessionWorker:
        """See `Platform.start_session_worker`."""
        if runtime is None:
            raise RuntimeStartError("The browser needs the runtime's WASM file; this is a fault of the caller.")
        started = self._bridge.startSessionWorker(_js_key(runtime), num_threads)
        return BrowserSessionWorker(await _owned(started, lambda worker: worker.terminate()))

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


class BrowserResponse:
    """A fetch whose body is still to come."""

    def __init__(self, answer: Any, controller: Any) -> None:
        self._answer = answer
        self._controller = controller
        self.url: str = answer.url
        self.status: int = answer.status
        self.headers: Mapping[str, str] = json.loads(answer.headers)

    async def read(self, limit: int) -> bytes:
        """See `Response.read`."""
        body = await self._abortable(self._answer.read(limit))
        return bytes(body.to_bytes())

    async def save(self, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """See `Response.save`. The bytes go from the network to IndexedDB without passing through Python."""
        if not isinstance(writer, BrowserBlobWriter):
            raise TypeError("a browser response saves into a browser writer")
        callback = create_proxy(on_bytes)
        try:
            await self._abortable(self._answer.save(writer.proxy, callback))
        finally:
            callback.destroy()

    async def close(self) -> None:
        """See `Response.close`."""
        await crossing(self._answer.close())

    async def _abortable(self, promise: Any) -> Any:
        work = asyncio.ensure_future(crossing(promise))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._controller.abort()
            # Only when JavaScript has let go may the caller drop what it passed.
            await asyncio.wait([work])
            work.exception()
            raise


class BrowserBlobWriter:
    """A file being written to IndexedDB."""

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy

    async def write(self, data: bytes) -> None:
        """See `BlobWriter.write`."""
        await crossing(self.proxy.write(to_js(data)))

    async def finish(self) -> tuple[int, str]:
        """See `BlobWriter.finish`."""
        values = json.loads(await crossing(self.proxy.finish()))
        return values["size"], values["sha256"]

    async def commit(self, metadata: Mapping[str, Any]) -> BlobInfo:
        """See `BlobWriter.commit`."""
        return _blob_info(json.loads(await crossing(self.proxy.commit(json.dumps(dict(metadata))))))

    async def abort(self) -> None:
        """See `BlobWriter.abort`."""
        await crossing(self.proxy.abort())


class BrowserBlobStore:
    """Files in IndexedDB."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    async def open_writer(self, key: BlobKey) -> BrowserBlobWriter:
        """See `BlobStore.open_writer`."""
        opened = self._bridge.openWriter(_js_key(key))
        return BrowserBlobWriter(await _owned(opened, lambda writer: writer.abort()))

    async def info(self, key: BlobKey) -> BlobInfo | None:
        """See `BlobStore.info`."""
        text = await crossing(self._bridge.info(_js_key(key)))
        return _blob_info(json.loads(text)) if text else None

    async def list(self, kind: str) -> list[BlobInfo]:
        """See `BlobStore.list`."""
        return [_blob_info(values) for values in json.loads(await crossing(self._bridge.list(kind)))]

    async def read(self, key: BlobKey) -> bytes:
        """See `BlobStore.read`."""
        body = await crossing(self._bridge.read(_js_key(key)))
        return bytes(body.to_bytes())

    async def verify(self, key: BlobKey) -> bool:
        """See `BlobStore.verify`."""
        return bool(await crossing(self._bridge.verify(_js_key(key))))

    async def delete(self, keys: Collection[BlobKey]) -> None:
        """See `BlobStore.delete`."""
        await crossing(self._bridge.delete(to_js([list(astuple(key)) for key in keys])))

    async def usage(self) -> tuple[int, int]:
        """See `BlobStore.usage`."""
        used, allowed = await crossing(self._bridge.usage())
        return int(used), int(allowed)

    async def persist(self) -> bool:
        """See `BlobStore.persist`."""
        return bool(await crossing(self._bridge.persist()))


class BrowserDocumentStore:
    """JSON documents in IndexedDB."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    async def get(self, key: str) -> Any | None:
        """See `DocumentStore.get`."""
        text = await crossing(self._bridge.getDocument(key))
        try:
            return json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            raise StoreError(f"The stored document '{key}' is damaged ({error}). Delete it.", key=key) from None

    async def put(self, key: str, value: Any) -> None:
        """See `DocumentStore.put`."""
        await crossing(self._bridge.putDocument(key, json.dumps(value)))

    async def delete(self, key: str) -> None:
        """See `DocumentStore.delete`."""
        await crossing(self._bridge.deleteDocument(key))


async def _owned(promise: Any, give_back: Callable[[Any], Any]) -> Any:
    """Await something that has to be given back; when that is cancelled, it is given back as soon as it is there.

    The promise itself is never cancelled: Python would lose what it resolves to.
    """
    work = asyncio.ensure_future(crossing(promise))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(lambda done: None if done.exception() else give_back(done.result()))
        raise


def _js_key(key: BlobKey) -> Any:
    return to_js([key.kind, key.owner, key.revision, key.path])


def _blob_info(values: dict[str, Any]) -> BlobInfo:
    return BlobInfo(
        key=BlobKey(*values["key"]),
        size=values["size"],
        sha256=values["sha256"],
        updated=values["updated"],
        metadata=values["metadata"],
    )


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
