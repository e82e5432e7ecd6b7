"""A Remote Settings client: collections in the document store, attachments in the blob store.

Nothing is stored before its signature has been checked, in memory. What was stored stays until something newer passes.
Source: mozilla/remote-settings, `docs/client-specifications.rst`; Firefox, `services/settings`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit

from pywebml.errors import (
    OptionsError,
    SettingsError,
    SettingsNetworkError,
    SignatureError,
    StaleSettingsError,
    UnknownCollectionError,
)
from pywebml.platform import BlobKey, Environment, Platform
from pywebml.progress import ProgressCallback, ignore_progress
from pywebml.settings.attachments import Attachments
from pywebml.settings.filters import filter_context, filter_records
from pywebml.settings.protocol import Changeset, parse_changeset, parse_monitor
from pywebml.settings.server import SettingsServer, same_origin
from pywebml.settings.signature import PRODUCTION_ROOT_SHA256, SIGNER_NAME, verify
from pywebml.settings.stored import Dump, StoredCollection
from pywebml.sharing import SharedWork

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,254}")

_logger = logging.getLogger("pywebml")


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose records are believed.

    Attributes:
        root_sha256: SHA-256 of the root certificate's DER, hexadecimal. Default: Mozilla's production root.
        signer_name: The only name that the signer's certificate may have.
        unsigned: Believe whatever the server says. Only for a server on the page's own origin; outside browsers, only
            on this machine.
    """

    root_sha256: str = PRODUCTION_ROOT_SHA256
    signer_name: str = SIGNER_NAME
    unsigned: bool = False


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What a sync changed, among the records that pass their filters here.

    Attributes:
        created: Records that are new.
        updated: `{"old": record, "new": record}` of those that changed.
        deleted: Records that are gone.
    """

    created: list[dict[str, Any]]
    updated: list[dict[str, dict[str, Any]]]
    deleted: list[dict[str, Any]]

    @property
    def empty(self) -> bool:
        """Whether nothing changed."""
        return not (self.created or self.updated or self.deleted)


SyncListener: TypeAlias = Callable[[str, SyncResult], None]
DumpReader: TypeAlias = Callable[[str, str], Dump | None]


class RemoteSettings:
    """Collections of one bucket of a server, or of a mirror of plain files in the same layout.

    Args:
        platform: Where requests go out and answers are kept.
        server_url: With the version: `https://settings.example/v1`; or relative to the page.
        bucket: Of the collections.
        trust: Whose records are believed.
        read_dump: From bucket and collection to the packaged records, for when there is nothing better.
        filter_values: Laid over the names that filters see (`pywebml.settings.filters`).
        retry_seconds: How long to wait before an attachment is asked for again; twice as long each time.

    Raises:
        OptionsError: `server_url` is not usable, or may not be trusted without signatures.
    """

    def __init__(
        self,
        platform: Platform,
        server_url: str,
        *,
        bucket: str = "main",
        trust: Trust | None = None,
        read_dump: DumpReader | None = None,
        filter_values: Mapping[str, Any] | None = None,
        retry_seconds: float = 0.25,
    ) -> None:
        self._server = SettingsServer(platform, server_url)
        self._trust = trust or Trust()
        if self._trust.unsigned:
            _check_own(self._server.url, platform.environment)
        self._root = "" if self._trust.unsigned else self._trust.root_sha256.replace(":", "").lower()
        self._platform = platform
        self._bucket = _check_name(bucket)
        self._read_dump = read_dump or (lambda bucket, collection: None)
        self.filter_values = dict(filter_values or {})
        self._attachments = Attachments(platform, self._server, self._owner, retry_seconds)
        self._syncs: SharedWork[str, SyncResult] = SharedWork()
        self._listeners: list[SyncListener] = []

    @property
    def server_url(self) -> str:
        """The server's address, absolute, without a slash at its end."""
        return self._server.url

    @property
    def alert(self) -> Mapping[str, str] | None:
        """What the server last told its users, in its `Alert` header: `code`, `message`, `url`."""
        return self._server.alert

    def on_sync(self, listener: SyncListener) -> Callable[[], None]:
        """Have `listener` called with collection and result after every sync that changed something.

        Returns:
            Call it to stop listening.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def get(self, collection: str, *, sync_if_empty: bool = True, verify: bool = False) -> list[dict[str, Any]]:
        """The records of a collection whose filters let them pass, newest first.

        Args:
            collection: Its name.
            sync_if_empty: Whether to ask the server when nothing is stored. What is stored is returned without any
                request. When the server does not help, the records of the package are returned, if it has any.
            verify: Whether to check the signature of what is stored once more.

        Raises:
            SettingsNetworkError: The server could not be reached or answered with an error status.
            SettingsResponseError: The server answered something that is not the protocol.
            SignatureError: The server's records, or (with `verify`) the stored ones, are not the signer's.
        """
        stored = await self._load(collection)
        dump = self._dump(collection)
        if stored is None and sync_if_empty:
            try:
                await self.sync(collection)
            except SettingsError as error:
                if dump is None:
                    raise
                _logger.warning("The records of %s are those of the package: %s", collection, error)
            stored = await self._load(collection)
        if stored is not None and verify:
            await self._reverify(collection, stored)
        return self._visible(_newer(stored, dump))

    async def sync(self, collection: str) -> SyncResult:
        """Bring a collection up to date. Callers at the same time share one sync.

        Raises:
            SettingsNetworkError: The server, or a certificate chain, could not be fetched.
            SettingsBackoffError: The server has asked to be left alone.
            SettingsResponseError: The server answered something that is not the protocol.
            UnknownCollectionError: The server has no such collection.
            StaleSettingsError: The server answered something older than what is stored.
            SignatureError: The records are not the signer's, not even when all of them are fetched anew.

            Whatever is raised, the last good records stay.
        """
        _check_name(collection)
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
            The file's name in the store. Its size and hash are those of the record; a stored file is hashed again.

        Raises:
            AttachmentError: The record's `attachment` is not usable, or the bytes are not the ones that it describes,
                after three more tries.
            SettingsNetworkError: The server could not be reached or answered with an error status.
            SettingsResponseError: The server's root is not that of a Remote Settings server.
        """
        return await self._attachments.obtain(_check_name(collection), record, on_progress)

    def attachment_file(self, collection: str, record: Mapping[str, Any]) -> tuple[BlobKey, int]:
        """Name in the store, and size in bytes, of the file of a record, whether it is there or not.

        Raises:
            AttachmentError: The record's `attachment` is not usable.
        """
        return self._attachments.file_of(_check_name(collection), record)

    async def fetch_bundle(self, collection: str) -> int:
        """Store all attachments of a collection from its bundle, one ZIP file, where the server makes one.

        Returns:
            How many of its files were stored. Those that do not fit their records were left out; `attachment` fetches
            them one by one.

        Raises:
            SettingsNetworkError: The server could not be reached or answered with an error status.
            AttachmentError: The server makes no bundle of this collection, or it is no ZIP file.
        """
        stored = await self._load(collection)
        if stored is None:
            await self.sync(collection)
            stored = await self._load(collection)
        bundled = stored is not None and stored.metadata.get("attachment")
        return await self._attachments.fetch_bundle(
            self._bucket,
            collection,
            list(stored.records.values()) if stored is not None else [],
            offered=isinstance(bundled, dict) and bundled.get("bundle") is True,
        )

    async def prune_attachments(self, collection: str) -> None:
        """Delete the stored files of a collection that no record asks for."""
        current = _newer(await self._load(collection), self._dump(collection))
        await self._attachments.prune(_check_name(collection), current)

    async def _sync(self, collection: str) -> SyncResult:
        await self._server.check_backoff()
        stored = await self._load(collection)
        dump = self._dump(collection)
        shown = self._visible(_newer(stored, dump))
        # The monitor tells the newest timestamp, so that nothing is fetched when nothing has changed.
        newest = await self._newest(collection)
        if stored is not None and newest <= stored.timestamp:
            return SyncResult([], [], [])
        try:
            fresh = await self._fetch(collection, newest, stored)
        except SignatureError:
            # Either the answer is wrong, or what it was merged into has been changed here.
            if stored is not None and not await self._still_good(collection, stored):
                await self._platform.documents.delete(self._document(collection))
                stored = None
            fresh = await self._fetch(collection, newest, None)
        floor = max(stored.timestamp if stored else 0, dump.timestamp if dump else 0)
        # A cache on the way, or somebody who replays a signed set, can answer with what was true before.
        if fresh.timestamp < floor:
            if stored is None or await self._still_good(collection, stored):
                raise _stale(collection, fresh.timestamp, floor)
            fresh = await self._fetch(collection, newest, None)
        await self._platform.documents.put(self._document(collection), fresh.to_document())
        await self._attachments.prune(collection, fresh.records)
        result = _compare(shown, self._visible(_newer(fresh, dump)))
        if not result.empty:
            for listener in list(self._listeners):
                listener(collection, result)
        return result

    async def _newest(self, collection: str) -> int:
        query = urlencode({"_expected": 0, "bucket": self._bucket, "collection": collection})
        url = f"{self._collection_url('monitor', 'changes')}/changeset?{query}"
        newest = parse_monitor(await self._server.read(url), url, self._bucket, collection)
        if newest is None:
            raise UnknownCollectionError(
                f"{self.server_url} has no collection {collection!r} in bucket {self._bucket!r}. Check its name and "
                "the address of the settings server.",
                url=url,
                collection=collection,
            )
        return newest

    async def _fetch(self, collection: str, newest: int, since: StoredCollection | None) -> StoredCollection:
        """The collection as the server has it now, its signature checked."""
        address = f"{self._collection_url(self._bucket, collection)}/changeset"
        url = f"{address}?{urlencode({'_expected': newest} | ({'_since': since.timestamp} if since else {}))}"
        try:
            answer = await self._server.read(url)
        except SettingsNetworkError as error:
            # The server does not know our timestamp any more.
            if since is None or error.details.get("status") != 400:
                raise
            return await self._fetch(collection, newest, None)
        changeset = parse_changeset(answer, url)
        records = _merge(since, changeset)
        chains: dict[str, str] = {}

        async def fetch_chain(x5u: str) -> bytes:
            chain = await self._server.read_chain(x5u)
            chains[x5u] = chain.decode("latin-1")
            return chain

        verified = None
        if not self._trust.unsigned:
            verified = self._platform.now()
            await self._verify(collection, changeset.timestamp, records, changeset.metadata, fetch_chain, verified)
        return StoredCollection(changeset.timestamp, records, changeset.metadata, chains, verified, self._root)

    async def _verify(
        self,
        collection: str,
        timestamp: int,
        records: Mapping[str, dict[str, Any]],
        metadata: Mapping[str, Any],
        fetch_chain: Callable[[str], Any],
        now: float,
    ) -> None:
        await verify(
            self._platform,
            fetch_chain,
            collection=collection,
            records=records.values(),
            timestamp=timestamp,
            metadata=metadata,
            now=now,
            root_sha256=self._trust.root_sha256,
            signer_name=self._trust.signer_name,
        )

    async def _reverify(self, collection: str, stored: StoredCollection) -> None:
        """Check what is stored as of the day when it was accepted: a signer's certificate expires, good data does not.

        Without any request: the chains were stored with the records.
        """
        if self._trust.unsigned:
            return

        async def stored_chain(x5u: str) -> bytes:
            # What is not there verifies nothing.
            return stored.chains.get(x5u, "").encode("latin-1", "replace")

        now = self._platform.now()
        await self._verify(
            collection,
            stored.timestamp,
            stored.records,
            stored.metadata,
            stored_chain,
            now if stored.verified is None else min(stored.verified, now),
        )

    async def _still_good(self, collection: str, stored: StoredCollection) -> bool:
        try:
            await self._reverify(collection, stored)
        except SignatureError as error:
            _logger.warning("What is stored of %s has been changed and is fetched anew: %s", collection, error)
            return False
        return True

    async def _load(self, collection: str) -> StoredCollection | None:
        """What is stored; None also when it is not what we store."""
        stored = StoredCollection.from_document(await self._platform.documents.get(self._document(collection)))
        # What was accepted under another root, or without any, does not count under this one.
        return None if stored is not None and stored.root_sha256 != self._root else stored

    def _dump(self, collection: str) -> Dump | None:
        return self._read_dump(self._bucket, _check_name(collection))

    def _visible(self, records: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
        newest_first = sorted(records.values(), key=lambda record: (-record["last_modified"], record["id"]))
        return filter_records(newest_first, filter_context(self._platform.environment, self.filter_values))

    def _collection_url(self, bucket: str, collection: str) -> str:
        return f"{self.server_url}/buckets/{bucket}/collections/{_check_name(collection)}"

    def _document(self, collection: str) -> str:
        return f"settings/{self.server_url}/{self._bucket}/{_check_name(collection)}"

    def _owner(self, collection: str) -> str:
        parts = urlsplit(self.server_url)
        return f"{parts.netloc.lower()}{parts.path}/{self._bucket}/{collection}"


def _check_own(server_url: str, environment: Environment) -> None:
    """Refuse to trust another origin without signatures."""
    if environment.base_url:
        own = same_origin(server_url, environment.base_url)
    else:
        own = urlsplit(server_url).hostname in {"localhost", "127.0.0.1", "::1"}
    if not own:
        raise OptionsError(
            f"The settings server {server_url} may not be trusted without signatures: allowUnsignedSettings is for a "
            "mirror on the page's own origin (outside browsers: on this machine). Sign its collections with "
            "'pywebml settings', and give settingsRootHash.",
            field="allowUnsignedSettings",
            value=server_url,
        )


def _check_name(name: str) -> str:
    """The name of a bucket or collection."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OptionsError(
            f"{name!r} cannot be the name of a bucket or collection: letters, digits, '-' and '_' only.",
            field="collection",
            value=str(name),
        )
    return name


def _newer(stored: StoredCollection | None, dump: Dump | None) -> Mapping[str, dict[str, Any]]:
    """A newer package can know more than an older visit."""
    if stored is not None and (dump is None or stored.timestamp >= dump.timestamp):
        return stored.records
    return dump.records if dump is not None else {}


def _merge(local: StoredCollection | None, changeset: Changeset) -> dict[str, dict[str, Any]]:
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


def _compare(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> SyncResult:
    old, new = ({record["id"]: record for record in records} for records in (before, after))
    return SyncResult(
        created=[record for name, record in new.items() if name not in old],
        updated=[
            {"old": old[name], "new": record} for name, record in new.items() if name in old and old[name] != record
        ],
        deleted=[record for name, record in old.items() if name not in new],
    )


def _stale(collection: str, received: int, stored: int) -> StaleSettingsError:
    return StaleSettingsError(
        f"The settings server answered an older state of {collection} ({received}) than the one that is stored "
        f"({stored}). The stored one was kept. Try again later; if that does not help, tell the owner of the server.",
        collection=collection,
        received=received,
        stored=stored,
    )
