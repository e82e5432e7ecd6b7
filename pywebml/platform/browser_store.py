"""The store in a browser: IndexedDB, files that the user chose, and names that one holder at a time may have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple
from typing import Any

import js
from pyodide.ffi import create_proxy, to_js

from pywebml.errors import StoreError
from pywebml.platform import BlobInfo, BlobKey, BlobWriter, StoreUsage
from pywebml.platform.browser_errors import abortable, crossing, owned

LARGEST_OFFSET = 2**52
"""Larger ones cross as `BigInt`, which JavaScript does not mix with its other numbers."""


class BrowserBlobWriter:
    """A file being written to IndexedDB."""

    def __init__(self, proxy: Any) -> None:
        self.proxy = proxy

    async def write(self, data: bytes) -> None:
        """See `BlobWriter.write`."""
        await crossing(self.proxy.write(to_js(data)))

    async def present(self) -> list[tuple[int, int]]:
        """See `BlobWriter.present`."""
        return [(begin, end) for begin, end in json.loads(await crossing(self.proxy.present()))]

    async def read(self, begin: int, end: int) -> bytes:
        """See `BlobWriter.read`."""
        body = await crossing(self.proxy.read(begin, end))
        return bytes(body.to_bytes())

    async def digest(self, begin: int, end: int) -> str:
        """See `BlobWriter.digest`."""
        return str(await crossing(self.proxy.digest(begin, end)))

    async def discard(self, begin: int, end: int) -> None:
        """See `BlobWriter.discard`."""
        await crossing(self.proxy.discard(begin, min(end, LARGEST_OFFSET)))

    async def finish(self, sha256: str | None = None) -> tuple[int, str]:
        """See `BlobWriter.finish`."""
        values = json.loads(await crossing(self.proxy.finish(*([] if sha256 is None else [sha256]))))
        return values["size"], values["sha256"]

    async def commit(self, metadata: Mapping[str, Any]) -> BlobInfo:
        """See `BlobWriter.commit`."""
        return _blob_info(json.loads(await crossing(self.proxy.commit(json.dumps(dict(metadata))))))

    async def suspend(self) -> None:
        """See `BlobWriter.suspend`."""
        await crossing(self.proxy.suspend())

    async def abort(self) -> None:
        """See `BlobWriter.abort`."""
        await crossing(self.proxy.abort())


class BrowserBlobStore:
    """Files in IndexedDB."""

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    async def open_writer(self, key: BlobKey, token: str = "") -> BrowserBlobWriter:
        """See `BlobStore.open_writer`."""
        opened = self._bridge.openWriter(js_key(key), token)
        return BrowserBlobWriter(await owned(opened, lambda writer: writer.suspend()))

    async def draft(self, key: BlobKey) -> tuple[str, int] | None:
        """See `BlobStore.draft`."""
        text = await crossing(self._bridge.draft(js_key(key)))
        if not text:
            return None
        token, size = json.loads(text)
        return token, size

    async def drop_drafts(self, keys: Collection[BlobKey] | None = None) -> None:
        """See `BlobStore.drop_drafts`."""
        await crossing(self._bridge.dropDrafts(*([] if keys is None else [_js_keys(keys)])))

    async def drafts(self) -> Sequence[tuple[BlobKey, int]]:
        """See `BlobStore.drafts`."""
        return [(BlobKey(*key), size) for key, size in json.loads(await crossing(self._bridge.drafts()))]

    async def info(self, key: BlobKey) -> BlobInfo | None:
        """See `BlobStore.info`."""
        text = await crossing(self._bridge.info(js_key(key)))
        return _blob_info(json.loads(text)) if text else None

    async def list(self, kind: str) -> list[BlobInfo]:
        """See `BlobStore.list`."""
        return [_blob_info(values) for values in json.loads(await crossing(self._bridge.list(kind)))]

    async def read(self, key: BlobKey) -> bytes:
        """See `BlobStore.read`."""
        body = await crossing(self._bridge.read(js_key(key)))
        return bytes(body.to_bytes())

    async def verify(self, key: BlobKey) -> bool:
        """See `BlobStore.verify`."""
        return bool(await crossing(self._bridge.verify(js_key(key))))

    async def update(self, metadata: Mapping[BlobKey, Mapping[str, Any]]) -> None:
        """See `BlobStore.update`."""
        changes = [(astuple(key), dict(values)) for key, values in metadata.items()]
        await crossing(self._bridge.update(json.dumps(changes)))

    async def delete(self, keys: Collection[BlobKey]) -> None:
        """See `BlobStore.delete`."""
        await crossing(self._bridge.delete(_js_keys(keys)))

    async def usage(self) -> StoreUsage:
        """See `BlobStore.usage`."""
        return StoreUsage(**json.loads(await crossing(self._bridge.usage())))

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


class BrowserOutsideFile:
    """A `File` of the page's user."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy
        self.path: str = proxy.path
        self.size: int = proxy.size

    async def read(self, begin: int, end: int) -> bytes:
        """See `OutsideFile.read`."""
        body = await crossing(self._proxy.read(begin, end))
        return bytes(body.to_bytes())

    async def copy(self, begin: int, end: int, writer: BlobWriter, on_bytes: Callable[[int], None]) -> None:
        """See `OutsideFile.copy`. The browser copies the bytes; nobody here sees them."""
        if not isinstance(writer, BrowserBlobWriter):
            raise TypeError("a browser file is copied into a browser writer")
        controller = js.AbortController.new()
        callback = create_proxy(on_bytes)
        try:
            copying = self._proxy.copy(begin, end, writer.proxy, callback, controller.signal)
            await abortable(copying, controller)
        finally:
            callback.destroy()


async def outside_files(bridge: Any, source: Any) -> list[BrowserOutsideFile]:
    """See `Platform.outside_files`."""
    given = to_js(list(source)) if isinstance(source, list | tuple) else source
    files = [BrowserOutsideFile(proxy) for proxy in await crossing(bridge.outsideFiles(given))]
    return sorted(files, key=lambda file: file.path)


async def write_outside(bridge: Any, target: Any, files: Sequence[tuple[str, Sequence[bytes | BlobKey]]]) -> Any:
    """See `Platform.write_outside`."""
    given = [[path, [_js_piece(piece) for piece in pieces]] for path, pieces in files]
    controller = js.AbortController.new()
    return await abortable(bridge.writeOutside(target, to_js(given), controller.signal), controller)


@asynccontextmanager
async def lock(bridge: Any, name: str) -> AsyncIterator[None]:
    """See `Platform.lock`."""
    controller = js.AbortController.new()
    taking = bridge.takeLock(name, controller.signal)
    try:
        # It may be granted in the same moment in which nobody wants it any more.
        held = await owned(taking, lambda late: late.release())
    except asyncio.CancelledError:
        controller.abort()
        raise
    try:
        yield
    finally:
        held.release()


def js_key(key: BlobKey) -> Any:
    """The key as the bridge takes it."""
    return to_js(list(astuple(key)))


def _js_keys(keys: Collection[BlobKey]) -> Any:
    return to_js([list(astuple(key)) for key in keys])


def _js_piece(piece: bytes | BlobKey) -> Any:
    return list(astuple(piece)) if isinstance(piece, BlobKey) else piece


def _blob_info(values: dict[str, Any]) -> BlobInfo:
    return BlobInfo(
        key=BlobKey(*values["key"]),
        size=values["size"],
        sha256=values["sha256"],
        updated=values["updated"],
        metadata=values["metadata"],
    )
