"""Which files a hub has: asked of the hub, remembered for when it does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pywebml.errors import DownloadError, ForbiddenURLError, IntegrityError
from pywebml.hub.addresses import HubAddress, is_pinned
from pywebml.hub.listing import (
    LARGEST_POINTER,
    MANIFEST,
    FileEntry,
    next_page,
    parse_lfs_pointer,
    parse_manifest,
    parse_tree,
)
from pywebml.hub.stored import KIND, tree_document
from pywebml.platform import STALL_SECONDS, BlobKey, NetworkError, Platform

HEAD_SECONDS = 1.0
"""How long a question may take whose answer is here already, perhaps in an older state."""

_LARGEST_MANIFEST = 64 * 1024 * 1024
_LARGEST_PAGE = 16 * 1024 * 1024
_MOST_PAGES = 50
# How long a branch's list is taken for the newest: one start reads many files of one model.
_FRESH_SECONDS = 30.0

_logger = logging.getLogger("pywebml")

Entries = Mapping[str, FileEntry]


class HubIndex:
    """The lists of files of one hub.

    Args:
        platform: Where requests go out.
        address: Of the hub.
        headers: Of every request to it.
        get_manifest: Has the `manifest.json` of a model and revision in the store. Gives its key, None when the hub
            has none, and whether the hub has answered.
        check_allowed: Raises `ForbiddenURLError` for an address that may not be reached.
        stall_seconds: How long a connection may stay silent.
    """

    def __init__(
        self,
        platform: Platform,
        address: HubAddress,
        headers: Mapping[str, str],
        get_manifest: Callable[[str, str], Awaitable[tuple[BlobKey | None, bool]]],
        check_allowed: Callable[[str], Awaitable[None]],
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self._platform = platform
        self._address = address
        self._headers = headers
        self._get_manifest = get_manifest
        self._check_allowed = check_allowed
        self._stall_seconds = stall_seconds
        # When it was asked, what was the answer, and where in the store that is.
        self._known: dict[tuple[str, str], tuple[float, Entries | None, BlobKey | None]] = {}
        # Of which the hub did not answer, so that what is known may be old.
        self._unanswered: set[tuple[str, str]] = set()

    async def entries(self, model: str, revision: str) -> Entries | None:
        """The complete list of a model's files; None where the hub has no such list.

        Raises:
            DownloadError: The hub could not be reached, and nothing is remembered.
            IntegrityError: The manifest is not one.
        """
        if self._address.listing == "none":
            return None
        name = (model, revision)
        now = self._platform.monotonic()
        if name in self._known:
            asked, entries, key = self._known[name]
            fresh = is_pinned(revision) or now - asked < _FRESH_SECONDS
            # A model that was deleted takes its list along.
            if fresh and (key is None or await self._platform.blobs.info(key) is not None):
                return entries
        if self._address.listing == "manifest":
            entries, key, answered = await self._manifest(model, revision)
        else:
            (entries, answered), key = await self._tree(model, revision), None
        self._known[name] = (now, entries, key)
        (self._unanswered.discard if answered else self._unanswered.add)(name)
        return entries

    async def is_remembered(self, model: str, revision: str) -> bool:
        """Whether `entries` answers for a pinned revision without a request."""
        known = self._known.get((model, revision))
        if known is not None and known[2] is None:
            return True
        owner = self._address.owner(model)
        if self._address.listing == "manifest":
            return await self._platform.blobs.info(BlobKey(KIND, owner, revision, MANIFEST)) is not None
        return await self._platform.documents.get(tree_document(owner, revision)) is not None

    def is_confirmed(self, model: str, revision: str) -> bool:
        """Whether the hub itself gave the last answer of `entries`, which else is what was remembered."""
        return (model, revision) not in self._unanswered

    async def pointer(self, model: str, revision: str, path: str) -> FileEntry | None:
        """What the pointer of Git LFS says that a hub like Hugging Face's has in place of a large file."""
        if self._address.listing != "huggingface":
            return None
        url = self._address.pointer_url(model, revision, path)
        try:
            await self._check_allowed(url)
            response = await self._platform.request(url, headers=self._headers, stall_seconds=self._stall_seconds)
            try:
                return parse_lfs_pointer(await response.read(LARGEST_POINTER)) if response.status == 200 else None
            finally:
                await response.close()
        except (NetworkError, ForbiddenURLError):
            return None

    async def _manifest(self, model: str, revision: str) -> tuple[Entries | None, BlobKey | None, bool]:
        stored = await self._platform.blobs.info(BlobKey(KIND, self._address.owner(model), revision, MANIFEST))
        patience = await self._patience(model, revision) if stored is None else None
        try:
            async with asyncio.timeout(patience):
                key, answered = await self._get_manifest(model, revision)
        except (DownloadError, TimeoutError):
            if patience is None:
                raise
            # What was imported needs no list.
            key, answered = None, False
        if key is None:
            return None, None, answered
        url = self._address.file_url(model, revision, key.path)
        info = await self._platform.blobs.info(key)
        try:
            if info is not None and info.size > _LARGEST_MANIFEST:
                raise IntegrityError(
                    f"{url} has {info.size} bytes, which no manifest has. Build it again, or tell the hub's owner.",
                    url=url,
                    expected=_LARGEST_MANIFEST,
                    received=info.size,
                )
            return parse_manifest(await self._platform.blobs.read(key), url), key, answered
        except IntegrityError:
            # The next try shall ask the hub again.
            await self._platform.blobs.delete([key])
            raise

    async def _patience(self, model: str, revision: str) -> float | None:
        """How long a list that is not here may take: not long, where files of its model are."""
        owner = self._address.owner(model)
        keys = [info.key for info in await self._platform.blobs.list(KIND)]
        return HEAD_SECONDS if any((key.owner, key.revision) == (owner, revision) for key in keys) else None

    async def _tree(self, model: str, revision: str) -> tuple[Entries | None, bool]:
        document = tree_document(self._address.owner(model), revision)
        remembered = _from_plain(await self._platform.documents.get(document))
        if remembered is not None and is_pinned(revision):
            return remembered, True
        timeout = await self._patience(model, revision) if remembered is None else HEAD_SECONDS
        try:
            entries = await self._fetch_tree(self._address.tree_url(model, revision), timeout)
        except (NetworkError, ForbiddenURLError, IntegrityError, TimeoutError) as error:
            _logger.info("The list of files of %s (%s) could not be had: %s", model, revision, error)
            entries = None
        if entries is None:
            # Without any list each file tells for itself, or what is wrong.
            return remembered, False
        if entries != remembered:
            await self._platform.documents.put(document, _to_plain(entries))
        return entries, True

    async def _fetch_tree(self, url: str, timeout: float | None) -> Entries | None:
        entries: dict[str, FileEntry] = {}
        for _ in range(_MOST_PAGES):
            await self._check_allowed(url)
            async with asyncio.timeout(timeout):
                response = await self._platform.request(
                    url, headers=self._headers, timeout=timeout, stall_seconds=self._stall_seconds
                )
                try:
                    if response.status != 200:
                        return None
                    entries |= parse_tree(await response.read(_LARGEST_PAGE), url)
                finally:
                    await response.close()
            following = next_page(response.headers.get("link"), url)
            if following is None:
                return entries
            url = following
        return None


def _to_plain(entries: Entries) -> dict[str, Any]:
    return {path: [entry.size, entry.sha256, entry.git_oid] for path, entry in entries.items()}


def _from_plain(value: Any) -> Entries | None:
    if not isinstance(value, dict):
        return None
    try:
        return {path: FileEntry(int(size), str(sha256), str(oid)) for path, (size, sha256, oid) in value.items()}
    except (TypeError, ValueError):
        return None
