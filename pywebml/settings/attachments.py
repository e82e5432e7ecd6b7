"""The files of records: downloaded, checked against their record, kept, and deleted with it."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pywebml.errors import AttachmentError, SettingsNetworkError
from pywebml.platform import BlobKey, NetworkError, Platform
from pywebml.progress import EventType, ProgressCallback, TransferProgress
from pywebml.settings.protocol import Attachment, attachment_url, parse_attachment
from pywebml.settings.server import SettingsServer
from pywebml.sharing import SharedWork

ATTEMPTS = 4
"""As many as Firefox makes."""

_KIND = "attachment"
_LONGEST_WAIT_SECONDS = 30.0
_LARGEST_BUNDLE = 256 * 1024 * 1024
_LARGEST_META = 1024 * 1024
_BROKEN_ENTRY = (KeyError, ValueError, RuntimeError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


class Attachments:
    """The attachments of one bucket.

    Args:
        platform: Where they are kept.
        server: Where they come from.
        owner: From a collection to the owner of its files in the store.
        retry_seconds: How long to wait before the second attempt; twice as long each time.
    """

    def __init__(
        self, platform: Platform, server: SettingsServer, owner: Callable[[str], str], retry_seconds: float
    ) -> None:
        self._platform = platform
        self._server = server
        self._owner = owner
        self._retry_seconds = retry_seconds
        self._downloads: SharedWork[BlobKey, BlobKey] = SharedWork()

    async def obtain(self, collection: str, record: Mapping[str, Any], on_progress: ProgressCallback) -> BlobKey:
        """See `RemoteSettings.attachment`."""
        attachment = parse_attachment(record, collection)
        key = self._key(collection, record, attachment)
        return await self._downloads.do(key, lambda emit: self._obtain(key, attachment, emit), on_progress)

    def file_of(self, collection: str, record: Mapping[str, Any]) -> tuple[BlobKey, int]:
        """See `RemoteSettings.attachment_file`."""
        attachment = parse_attachment(record, collection)
        return self._key(collection, record, attachment), attachment.size

    async def prune(self, collection: str, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Delete every stored file of the collection that none of its records describes."""
        wanted = {}
        for record in records.values():
            try:
                attachment = parse_attachment(record, collection)
            except AttachmentError:
                continue
            wanted[self._key(collection, record, attachment)] = (attachment.size, attachment.sha256)
        owner = self._owner(collection)
        await self._platform.blobs.delete(
            [
                info.key
                for info in await self._platform.blobs.list(_KIND)
                if info.key.owner == owner and wanted.get(info.key) != (info.size, info.sha256)
            ]
        )

    async def fetch_bundle(
        self, bucket: str, collection: str, records: Sequence[Mapping[str, Any]], *, offered: bool
    ) -> int:
        """See `RemoteSettings.fetch_bundle`."""
        if not offered:
            raise AttachmentError(
                f"The settings server makes no bundle of {collection}; fetch its attachments one by one.",
                collection=collection,
            )
        root, _ = await self._server.root()
        url = f"{root.attachments_base}bundles/{bucket}--{collection}.zip"
        try:
            bundle = zipfile.ZipFile(io.BytesIO(await self._server.read(url, _LARGEST_BUNDLE)))
        except (zipfile.BadZipFile, ValueError, OSError) as error:
            raise AttachmentError(f"{url} is no ZIP file ({error}).", url=url, collection=collection) from error
        count = 0
        with bundle:
            for record in records:
                try:
                    attachment = parse_attachment(record, collection)
                except AttachmentError:
                    continue
                data = _bundled(bundle, record, attachment)
                if data is not None:
                    await self._store(self._key(collection, record, attachment), data, url)
                    count += 1
        return count

    def _key(self, collection: str, record: Mapping[str, Any], attachment: Attachment) -> BlobKey:
        return BlobKey(_KIND, self._owner(collection), str(record.get("id")), attachment.filename)

    async def _obtain(self, key: BlobKey, attachment: Attachment, emit: ProgressCallback) -> BlobKey:
        stored = await self._platform.blobs.info(key)
        if stored is not None and (stored.size, stored.sha256) == (attachment.size, attachment.sha256):
            # Disks and browsers lose bytes, and what is wrong here ends as a riddle much later.
            if await self._platform.blobs.verify(key):
                progress = _progress(emit, "loading_from_cache", key, str(stored.metadata.get("url", "")))
                progress.initiate()
                progress.expect(stored.size)
                progress.done()
                return key
            await self._platform.blobs.delete([key])
        async with self._platform.lock(f"download:{'/'.join((key.owner, key.revision, key.path))}"):
            newer = await self._platform.blobs.info(key)
            if newer is None or (newer.size, newer.sha256) != (attachment.size, attachment.sha256):
                await self._fetch(key, attachment, emit)
        others = await self._platform.blobs.list(_KIND)
        await self._platform.blobs.delete(
            [o.key for o in others if (o.key.owner, o.key.revision) == (key.owner, key.revision) and o.key != key]
        )
        return key

    async def _fetch(self, key: BlobKey, attachment: Attachment, emit: ProgressCallback) -> None:
        root, fresh = await self._server.root()
        for attempt in range(ATTEMPTS):
            try:
                await self._download(key, attachment, attachment_url(root.attachments_base, attachment), emit)
                break
            except (SettingsNetworkError, AttachmentError) as error:
                wait = _wait(error, self._retry_seconds * 2**attempt)
                # The server may have moved its attachments since we asked where they are.
                if attempt == ATTEMPTS - 1 or (wait is None and fresh):
                    raise
            await asyncio.sleep(wait or 0)
            if not fresh:
                root, fresh = await self._server.root(ask=True)

    async def _download(self, key: BlobKey, attachment: Attachment, url: str, emit: ProgressCallback) -> None:
        progress = _progress(emit, "downloading", key, url)
        progress.initiate()
        progress.expect(attachment.size)
        try:
            await self._transfer(key, attachment, url, progress)
        except BaseException:
            progress.done(ok=False)
            raise
        progress.done()

    async def _transfer(self, key: BlobKey, attachment: Attachment, url: str, progress: TransferProgress) -> None:
        response = await self._server.answer(url)
        try:
            writer = await self._platform.blobs.open_writer(key)
            try:
                try:
                    await response.save(writer, progress.advance)
                except NetworkError as error:
                    raise SettingsNetworkError(
                        f"The download of {url} broke off: {error}. Check the connection and try again.", url=url
                    ) from error
                size, sha256 = await writer.finish()
                if (size, sha256) != (attachment.size, attachment.sha256):
                    raise AttachmentError(
                        f"The bytes of {url} are not those of its record: {size} bytes with SHA-256 {sha256}, not "
                        f"{attachment.size} with {attachment.sha256}. Nothing was stored; try again, and if that "
                        "does not help, tell the owner of the settings server.",
                        url=url,
                        expected={"size": attachment.size, "sha256": attachment.sha256},
                        received={"size": size, "sha256": sha256},
                    )
                await writer.commit({"url": url, "contentType": response.headers.get("content-type", "")})
            except BaseException:
                # Shielded: a second cancellation must not leave half a file.
                await asyncio.shield(writer.abort())
                raise
        finally:
            await response.close()

    async def _store(self, key: BlobKey, data: bytes, url: str) -> None:
        writer = await self._platform.blobs.open_writer(key)
        try:
            await writer.write(data)
            await writer.finish()
            await writer.commit({"url": url})
        except BaseException:
            await asyncio.shield(writer.abort())
            raise


def _bundled(bundle: zipfile.ZipFile, record: Mapping[str, Any], attachment: Attachment) -> bytes | None:
    """A record's file in a bundle; None when it is not the one that the record describes."""
    name = str(record.get("id"))
    try:
        meta = json.loads(_entry(bundle, f"{name}.meta.json", _LARGEST_META))
        data = _entry(bundle, name, attachment.size)
    except _BROKEN_ENTRY:
        return None
    described = isinstance(meta, dict) and meta.get("attachment") == record.get("attachment")
    fits = len(data) == attachment.size and hashlib.sha256(data).hexdigest() == attachment.sha256
    return data if described and fits else None


def _entry(bundle: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The bytes of an entry, never more than one above `limit`, whatever the archive says about their number."""
    with bundle.open(name) as entry:
        return entry.read(limit + 1)


def _wait(error: SettingsNetworkError | AttachmentError, seconds: float) -> float | None:
    """How long to wait before another attempt; None when none can help."""
    status = error.details.get("status")
    if isinstance(status, int) and status < 500 and status not in {408, 429}:
        return None
    asked = float(error.details.get("retry_after") or 0)
    return None if asked > _LONGEST_WAIT_SECONDS else max(seconds, asked)


def _progress(emit: ProgressCallback, event_type: EventType, key: BlobKey, url: str) -> TransferProgress:
    metadata = {"model": key.owner, "revision": key.revision, "file": key.path, "url": url, "taskName": None}
    return TransferProgress(emit, event_type, url, metadata)
