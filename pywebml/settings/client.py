"""A Remote Settings client: collections in the document store, attachments in the blob store."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from pywebml.errors import AttachmentError, OptionsError, SettingsNetworkError, SettingsResponseError
from pywebml.platform import BlobKey, NetworkError, Platform, Response
from pywebml.progress import EventType, ProgressCallback, TransferProgress, ignore_progress
from pywebml.settings.protocol import (
    Attachment,
    Changeset,
    attachment_url,
    parse_attachment,
    parse_changeset,
    parse_monitor,
    parse_root,
)
from pywebml.sharing import SharedWork

_KIND = "attachment"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,254}")
_LARGEST_ANSWER = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync changed.

    Attributes:
        created: Records that are new.
        updated: `{"old": record, "new": record}` of those that changed.
        deleted: Records that are gone.
    """

    created: list[dict[str, Any]]
    updated: list[dict[str, dict[str, Any]]]
    deleted: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Local:
    """A stored collection."""

    timestamp: int
    records: dict[str, dict[str, Any]]


class RemoteSettings:
    """Collections of one bucket of a server, or of a mirror of plain files in the same layout.

    Args:
        platform: Where requests go out and answers are kept.
        server_url: With the version: `https://settings.example/v1`; or relative to the page.
        bucket: Of the collections.

    Raises:
        OptionsError: `server_url` is not usable.
    """

    def __init__(self, platform: Platform, server_url: str, *, bucket: str = "main") -> None:
        self.server_url = _check_server(server_url, platform.environment.base_url)
        self._platform = platform
        self._bucket = _check_name(bucket)
        self._syncs: SharedWork[str, SyncResult] = SharedWork()
        self._downloads: SharedWork[BlobKey, BlobKey] = SharedWork()

    async def get(self, collection: str, *, sync_if_empty: bool = True) -> list[dict[str, Any]]:
        """The records of a collection, newest first.

        Args:
            collection: Its name.
            sync_if_empty: Whether to ask the server when nothing is stored. What is stored is returned without any
                request.

        Raises:
            SettingsNetworkError: The server could not be reached or answered with an error status.
            SettingsResponseError: The server answered something that is not the protocol.
        """
        local = await self._load(collection)
        if local is None and sync_if_empty:
            await self.sync(collection)
            local = await self._load(collection)
        records = list(local.records.values()) if local else []
        return sorted(records, key=lambda record: (-record["last_modified"], record["id"]))

    async def sync(self, collection: str) -> SyncResult:
        """Bring a collection up to date; what is stored stays when that fails. Raises as `get`."""
        return await self._syncs.do(collection, lambda emit: self._sync(collection))

    async def attachment(
        self, collection: str, record: Mapping[str, Any], on_progress: ProgressCallback = ignore_progress
    ) -> BlobKey:
        """Have the file of a record in the store.

        Args:
            collection: Of the record.
            record: From `get`.
            on_progress: As for a model's file: `loading_from_cache` or `downloading`.

        Returns:
            The file's name in the store. Its size and hash are those of the record.

        Raises:
            AttachmentError: The record's `attachment` is not usable, or the bytes are not the ones that it describes.
            SettingsNetworkError: The server could not be reached or answered with an error status.
            SettingsResponseError: The server's root is not that of a Remote Settings server.
        """
        attachment = parse_attachment(record, _check_name(collection))
        key = BlobKey(_KIND, self._owner(collection), str(record.get("id")), attachment.filename)
        return await self._downloads.do(key, lambda emit: self._obtain(key, attachment, emit), on_progress)

    # Collections

    async def _sync(self, collection: str) -> SyncResult:
        local = await self._load(collection)
        # The monitor tells the newest timestamp, so that nothing is fetched when nothing has changed.
        newest = await self._newest(collection)
        if local is not None and newest <= local.timestamp:
            return SyncResult([], [], [])
        query: dict[str, str | int] = {"_expected": newest}
        if local is not None:
            query["_since"] = local.timestamp
        url = f"{self._collection_url(self._bucket, collection)}/changeset?{urlencode(query)}"
        changeset = parse_changeset(await self._read(url), url)
        # A cache on the way can answer with what was true before.
        if local is not None and changeset.timestamp < local.timestamp:
            return SyncResult([], [], [])
        records = _merge(local, changeset)
        before = local.records if local else {}
        await self._platform.documents.put(
            self._document(collection),
            {"timestamp": changeset.timestamp, "metadata": changeset.metadata, "records": records},
        )
        result = _compare(before, records)
        await self._drop_attachments(collection, {record["id"] for record in result.deleted})
        return result

    async def _newest(self, collection: str) -> int:
        query = urlencode({"_expected": 0, "bucket": self._bucket, "collection": collection})
        url = f"{self._collection_url('monitor', 'changes')}/changeset?{query}"
        newest = parse_monitor(await self._read(url), url, self._bucket, collection)
        if newest is None:
            raise SettingsResponseError(
                f"{self.server_url} has no collection {collection!r} in bucket {self._bucket!r}. Check its name and "
                "the address of the settings server.",
                url=url,
            )
        return newest

    async def _load(self, collection: str) -> _Local | None:
        """What is stored; None also when it is not what we store."""
        stored = await self._platform.documents.get(self._document(collection))
        if not isinstance(stored, dict):
            return None
        timestamp, records = stored.get("timestamp"), stored.get("records")
        if type(timestamp) is not int or not isinstance(records, dict):
            return None
        for name, record in records.items():
            if not isinstance(record, dict) or record.get("id") != name:
                return None
            if type(record.get("last_modified")) is not int:
                return None
        return _Local(timestamp, records)

    # Attachments

    async def _obtain(self, key: BlobKey, attachment: Attachment, emit: ProgressCallback) -> BlobKey:
        stored = await self._platform.blobs.info(key)
        if stored is not None and (stored.size, stored.sha256) == (attachment.size, attachment.sha256):
            progress = _progress(emit, "loading_from_cache", key, str(stored.metadata.get("url", "")))
            progress.initiate()
            progress.expect(stored.size)
            progress.done()
            return key
        base, fresh = await self._attachments_base()
        try:
            await self._download(key, attachment, attachment_url(base, attachment), emit)
        except SettingsNetworkError:
            # The server may have moved its attachments since we asked where they are.
            newer = base if fresh else (await self._attachments_base(ask=True))[0]
            if newer == base:
                raise
            await self._download(key, attachment, attachment_url(newer, attachment), emit)
        others = await self._platform.blobs.list(_KIND)
        await self._platform.blobs.delete(
            [o.key for o in others if (o.key.owner, o.key.revision) == (key.owner, key.revision) and o.key != key]
        )
        return key

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
        response = await self._answer(url)
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

    async def _attachments_base(self, *, ask: bool = False) -> tuple[str, bool]:
        """Where attachments are, and whether the server has just told."""
        name = f"settings-root/{self.server_url}"
        stored = None if ask else await self._platform.documents.get(name)
        if isinstance(stored, str):
            return stored, False
        url = f"{self.server_url}/"
        base = parse_root(await self._read(url), url)
        await self._platform.documents.put(name, base)
        return base, True

    async def _drop_attachments(self, collection: str, record_ids: set[str]) -> None:
        if not record_ids:
            return
        owner = self._owner(collection)
        stored = await self._platform.blobs.list(_KIND)
        await self._platform.blobs.delete(
            [info.key for info in stored if info.key.owner == owner and info.key.revision in record_ids]
        )

    # Requests and names

    async def _read(self, url: str) -> bytes:
        response = await self._answer(url)
        try:
            return await response.read(_LARGEST_ANSWER)
        except NetworkError as error:
            raise SettingsNetworkError(f"The answer of {url} broke off: {error}.", url=url) from error
        finally:
            await response.close()

    async def _answer(self, url: str) -> Response:
        try:
            response = await self._platform.request(url)
        except NetworkError as error:
            raise SettingsNetworkError(
                f"The settings server could not be reached at {url}: {error}. Check the connection and the address; "
                "in a page the server must also allow requests from the page's origin (CORS).",
                url=url,
            ) from error
        if response.status != 200:
            await response.close()
            raise SettingsNetworkError(
                f"The settings server answered {response.status} for {url}. Check its address, or try again later.",
                url=url,
                status=response.status,
            )
        return response

    def _collection_url(self, bucket: str, collection: str) -> str:
        return f"{self.server_url}/buckets/{bucket}/collections/{_check_name(collection)}"

    def _document(self, collection: str) -> str:
        return f"settings/{self.server_url}/{self._bucket}/{_check_name(collection)}"

    def _owner(self, collection: str) -> str:
        parts = urlsplit(self.server_url)
        return f"{parts.netloc.lower()}{parts.path}/{self._bucket}/{collection}"


def _check_server(server_url: str, base_url: str) -> str:
    """The server's address, absolute, without a slash at its end."""
    try:
        absolute = urljoin(base_url, server_url)
        parts = urlsplit(absolute)
        port = parts.port
    except ValueError:
        absolute, parts, port = "", urlsplit(""), None
    plain = parts.username is None and not parts.query and not parts.fragment and port != 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise OptionsError(
            f"{server_url!r} cannot be a settings server. Give an http or https address with its version, like "
            "'https://settings.example/v1', without query, fragment or password.",
            field="settingsServer",
            value=server_url,
        )
    return absolute.rstrip("/")


def _check_name(name: str) -> str:
    """The name of a bucket or collection."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OptionsError(
            f"{name!r} cannot be the name of a bucket or collection: letters, digits, '-' and '_' only.",
            field="collection",
            value=str(name),
        )
    return name


def _merge(local: _Local | None, changeset: Changeset) -> dict[str, dict[str, Any]]:
    """The records after a changeset, by id."""
    # A mirror of plain files, or a server that does not know our timestamp, answers with the whole collection:
    # then something in it is not newer than what we asked for, or the mirror says so.
    whole = (
        local is None
        or changeset.metadata.get("complete") is True
        or any(change["last_modified"] <= local.timestamp for change in changeset.changes)
    )
    records = {} if local is None or whole else dict(local.records)
    for change in changeset.changes:
        if change.get("deleted") is True:
            records.pop(change["id"], None)
        else:
            records[change["id"]] = change
    return records


def _compare(before: Mapping[str, dict[str, Any]], after: Mapping[str, dict[str, Any]]) -> SyncResult:
    return SyncResult(
        created=[record for name, record in after.items() if name not in before],
        updated=[
            {"old": before[name], "new": record}
            for name, record in after.items()
            if name in before and before[name] != record
        ],
        deleted=[record for name, record in before.items() if name not in after],
    )


def _progress(emit: ProgressCallback, event_type: EventType, key: BlobKey, url: str) -> TransferProgress:
    metadata = {"model": key.owner, "revision": key.revision, "file": key.path, "url": url, "taskName": None}
    return TransferProgress(emit, event_type, url, metadata)
