"""A model hub seen through the store: files are downloaded once, then read from here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

from pywebml.errors import DownloadError, FileNotFoundOnHubError, IntegrityError
from pywebml.hub.addresses import HubAddress, Listing, check_path, check_revision, is_pinned
from pywebml.hub.answers import content_length
from pywebml.hub.download import LARGE, FileRequest, download
from pywebml.hub.index import HEAD_SECONDS, HubIndex
from pywebml.hub.listing import MANIFEST, FileEntry, git_oid_of
from pywebml.hub.policy import AllowDenyList
from pywebml.hub.stored import (
    KIND,
    LOCK,
    ModelInfo,
    Selection,
    StoredFile,
    StoredModels,
    absence_document,
    plain_uses,
)
from pywebml.platform import STALL_SECONDS, BlobInfo, BlobKey, NetworkError, Platform
from pywebml.progress import ProgressCallback, TransferProgress, ignore_progress
from pywebml.sharing import SharedWork

_LARGEST_READ = 64 * 1024 * 1024
_WATCH_SECONDS = 0.5

_logger = logging.getLogger("pywebml")

Policy = Callable[[], Awaitable[AllowDenyList]]


@dataclass(frozen=True, slots=True)
class FileStatus:
    """What is known of a file before it is asked for.

    Attributes:
        url: Where the hub has it.
        key: Its name in the store.
        size: In bytes; None when the hub does not tell.
        stored: Whether it is in the store, and as far as is known still the hub's.
        loaded: Bytes that are here already: all of a stored file, what a broken download left of another.
        exists: False when the hub does not have it.
    """

    url: str
    key: BlobKey
    size: int | None
    stored: bool
    loaded: int
    exists: bool = True


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is asked for."""

    model: str
    revision: str
    path: str
    url: str
    key: BlobKey
    task_name: str | None = None
    engine_id: str | None = None
    required: bool = True

    def progress(
        self, event_type: Literal["downloading", "loading_from_cache"], emit: ProgressCallback
    ) -> TransferProgress:
        metadata: dict[str, Any] = {
            "model": self.model,
            "revision": self.revision,
            "file": self.path,
            "url": self.url,
            "taskName": self.task_name,
        }
        if self.engine_id is not None:
            metadata["engineId"] = self.engine_id
        return TransferProgress(emit, event_type, self.url, metadata)


class ModelHub:
    """Files of one hub.

    A file of a commit or version tag is never asked for again once it is stored. One of a branch is compared
    with the hub's (by hash, else by ETag); without an answer within a second the stored copy counts. Where a branch
    has moved and only some of its new files came, those then go with older ones: each whole, but not all of one
    commit. A pinned revision has no such mixtures.

    Args:
        platform: Where requests go out and files are kept.
        root_url: `https://…/`, or relative to the page.
        url_template: Words, `{model}` and `{revision}`, with slashes between them.
        default_revision: For callers who give none.
        listing: How the hub tells which files a model has; None: as its template lets expect.
        access_token: For a private hub. Goes to the hub's own origin and nowhere else, and is not stored.
        policy: Gives the allow and deny list that holds at the moment; None: everything may be reached.
        stall_seconds: How long a connection may stay silent.

    Raises:
        OptionsError: An address or revision is not usable.
    """

    def __init__(
        self,
        platform: Platform,
        root_url: str,
        url_template: str = "{model}/{revision}",
        *,
        default_revision: str = "main",
        listing: Listing | None = None,
        access_token: str | None = None,
        policy: Policy | None = None,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.address = HubAddress.of(root_url, url_template, base_url=platform.environment.base_url, listing=listing)
        self.default_revision = check_revision(default_revision)
        self._platform = platform
        self._policy = policy
        self._stall_seconds = stall_seconds
        self._headers = {"authorization": f"Bearer {access_token}"} if access_token else {}
        self._index = HubIndex(
            platform, self.address, self._headers, self._get_manifest, self.check_allowed, stall_seconds
        )
        # Models whose stored manifest the hub did not speak about when it was last asked.
        self._silent: set[tuple[str, str]] = set()
        self._stored = StoredModels(platform)
        self._transfers: SharedWork[tuple[BlobKey, bool], BlobKey | None] = SharedWork()
        self._absences = asyncio.Lock()

    @overload
    async def get_file(
        self,
        model: str,
        revision: str | None,
        path: str,
        *,
        task_name: str | None = None,
        engine_id: str | None = None,
        required: Literal[True] = True,
        on_progress: ProgressCallback = ignore_progress,
    ) -> BlobKey: ...

    @overload
    async def get_file(
        self,
        model: str,
        revision: str | None,
        path: str,
        *,
        task_name: str | None = None,
        engine_id: str | None = None,
        required: bool,
        on_progress: ProgressCallback = ignore_progress,
    ) -> BlobKey | None: ...

    async def get_file(
        self,
        model: str,
        revision: str | None,
        path: str,
        *,
        task_name: str | None = None,
        engine_id: str | None = None,
        required: bool = True,
        on_progress: ProgressCallback = ignore_progress,
    ) -> BlobKey | None:
        """Have a file in the store, from there or from the hub.

        Args:
            model: `org/name`.
            revision: Branch, tag or commit; None: `default_revision`.
            path: Inside the model.
            task_name: Goes into the events and is stored with a downloaded file.
            engine_id: Goes into the events.
            required: False: None is returned for a file that the hub does not have.
            on_progress: `loading_from_cache`: initiate, done; or `downloading`: initiate, size_estimate,
                in_progress …, done.

        Returns:
            The file's name in the store.

        Raises:
            OptionsError: A name is not allowed.
            ForbiddenURLError: The allow and deny list does not let its address through.
            FileNotFoundOnHubError: The hub has no such file.
            DownloadError: The hub could not be reached, or stopped in the middle.
            IntegrityError: Size, hash or kind of the bytes is wrong.
            StoreError: There is no room, or the store cannot be used.
        """
        file = self._file(model, revision, path, task_name=task_name, engine_id=engine_id, required=required)
        await self.check_allowed(file.url)
        return await self._transfers.do((file.key, required), lambda emit: self._obtain(file, emit), on_progress)

    async def read_file(
        self,
        model: str,
        revision: str | None,
        path: str,
        *,
        task_name: str | None = None,
        engine_id: str | None = None,
        on_progress: ProgressCallback = ignore_progress,
    ) -> bytes:
        """The bytes of a small file (64 MiB at most); otherwise as `get_file`."""
        key = await self.get_file(
            model, revision, path, task_name=task_name, engine_id=engine_id, on_progress=on_progress
        )
        return await self._read(key)

    async def read_stored(self, model: str, revision: str | None, path: str) -> bytes:
        """The bytes of a small file that is stored. Makes no request.

        Raises:
            ForbiddenURLError: The allow and deny list does not let its address through.
            IntegrityError: It has more than 64 MiB.
            StoreError: It is not there.
        """
        file = self._file(model, revision, path)
        await self.check_allowed(file.url)
        return await self._read(file.key)

    async def _read(self, key: BlobKey) -> bytes:
        info = await self._platform.blobs.info(key)
        if info is not None and info.size > _LARGEST_READ:
            raise IntegrityError(
                f"{key.path!r} of {key.owner} has {info.size} bytes, more than the {_LARGEST_READ} that a file of "
                "its kind can have. Delete the stored model and check the hub.",
                url=str(info.metadata.get("url", "")),
                expected=_LARGEST_READ,
                received=info.size,
            )
        return await self._platform.blobs.read(key)

    async def has_file(self, model: str, revision: str | None, path: str) -> bool:
        """Whether a file is stored, whole. Makes no request. Raises `ForbiddenURLError` too."""
        file = self._file(model, revision, path)
        await self.check_allowed(file.url)
        return await self._platform.blobs.info(file.key) is not None

    async def file_status(self, model: str, revision: str | None, path: str) -> FileStatus:
        """What is known of a file: from the hub's list, from the store, or else by asking for its head.

        Raises:
            OptionsError: A name is not allowed.
            ForbiddenURLError: The allow and deny list does not let its address through.
            DownloadError: The hub's list could not be reached.
            IntegrityError: The hub's list is not one.
        """
        # Not required: for a status, what was absent from a pinned revision is absent.
        file = self._file(model, revision, path, required=False)
        await self.check_allowed(file.url)
        stored = await self._platform.blobs.info(file.key)
        entries = await self._entries(file, stored)
        entry = entries.get(file.path) if entries is not None else None
        if stored is not None and (entries is None or (entry and await self._counts(file, stored, entry))):
            return FileStatus(file.url, file.key, stored.size, True, stored.size)
        if entries is not None and entry is None:
            return FileStatus(file.url, file.key, None, False, 0, exists=False)
        draft = await self._platform.blobs.draft(file.key)
        loaded = draft[1] if draft is not None else 0
        if entry is not None:
            return FileStatus(file.url, file.key, entry.size, False, min(loaded, entry.size))
        exists, size = await self._ask_for_size(file)
        return FileStatus(file.url, file.key, size, False, loaded, exists=exists)

    async def entries(self, model: str, revision: str | None) -> Mapping[str, FileEntry] | None:
        """The hub's complete list of a model's files; None where it has none.

        Raises:
            ForbiddenURLError: The allow and deny list does not let the model through.
            DownloadError: The hub could not be reached.
            IntegrityError: The manifest is not one.
        """
        await self.check_allowed(self._file(model, revision, MANIFEST).url)
        return await self._index.entries(model, self._revision(revision))

    async def check_allowed(self, url: str) -> None:
        """Raises `ForbiddenURLError` for an address that the allow and deny list does not let through."""
        if self._policy is not None:
            (await self._policy()).check(url)

    async def list_models(self) -> list[ModelInfo]:
        """The stored models of this hub, ordered by model and revision."""
        return await self._stored.models(Selection(hub=self.address.owner_prefix))

    async def list_files(self, model: str, revision: str | None = None) -> list[StoredFile]:
        """The stored files of a model, in one revision or (None) in all."""
        return await self._stored.files(self._selection(model, revision))

    async def delete_model(self, model: str, revision: str | None = None) -> int:
        """Delete a model's stored files, in one revision or (None) in all; returns how many bytes they had."""
        return await self._stored.delete(self._selection(model, revision))

    async def delete_other_revisions(self, model: str, keep: Collection[str], *, task_name: str | None = None) -> int:
        """Delete a model's stored files of all revisions but some; returns how many bytes they had.

        Args:
            model: `org/name`.
            keep: Revisions that stay.
            task_name: Delete only what no other task uses.
        """
        selection = Selection(hub=self.address.owner_prefix, task_name=task_name)
        return await self._stored.purge_revisions(model, keep, selection)

    def _selection(self, model: str, revision: str | None) -> Selection:
        self.address.owner(model)
        return Selection(hub=self.address.owner_prefix, model=model, revision=revision)

    def _revision(self, revision: str | None) -> str:
        return self.default_revision if revision is None else revision

    def _file(self, model: str, revision: str | None, path: str, **options: Any) -> _File:
        chosen = self._revision(revision)
        return _File(
            model=model,
            revision=chosen,
            path=path,
            url=self.address.file_url(model, chosen, path),
            key=BlobKey(KIND, self.address.owner(model), check_revision(chosen), check_path(path)),
            **options,
        )

    async def _entries(self, file: _File, stored: BlobInfo | None) -> Mapping[str, FileEntry] | None:
        if file.path == MANIFEST:
            return None
        if is_pinned(file.revision) and (stored is not None or (not file.required and await self._is_absent(file.key))):
            # What is here, or not on the hub, stays so: no list is asked for.
            remembered = await self._index.is_remembered(file.model, file.revision)
            return await self._index.entries(file.model, file.revision) if remembered else None
        return await self._index.entries(file.model, file.revision)

    async def _get_manifest(self, model: str, revision: str) -> tuple[BlobKey | None, bool]:
        key = await self.get_file(model, revision, MANIFEST, required=False)
        return key, (model, revision) not in self._silent

    async def _obtain(self, file: _File, emit: ProgressCallback) -> BlobKey | None:
        """The file's key, or None when the hub does not have it."""
        stored = await self._platform.blobs.info(file.key)
        entries = await self._entries(file, stored)
        # A list has every file, so that asking for one more could only bring a 404.
        if entries is not None and file.path not in entries:
            if not file.required:
                return None
            raise FileNotFoundOnHubError(
                f"The hub has no file {file.path!r} of {file.model} ({file.revision}): its list of the model's files "
                f"does not have {file.url}. Check model id, revision and file name.",
                url=file.url,
                status=404,
            )
        entry = entries[file.path] if entries is not None else None
        if stored is not None and await self._is_current(file, stored, entry):
            progress = file.progress("loading_from_cache", emit)
            progress.initiate()
            progress.expect(stored.size)
            progress.done()
            return file.key
        # A required file is asked for again, since its hub may have been mended.
        known_absent = not file.required and stored is None and await self._is_absent(file.key)
        if known_absent and not (await self._ask_for_size(file))[0]:
            return None
        try:
            await self._download(file, entry, stored, file.progress("downloading", emit))
        except FileNotFoundOnHubError as error:
            if file.required or error.details["status"] not in {404, 410}:
                raise
            await self._set_absent(file.key, True)
            return None
        except DownloadError:
            # Offline, what was absent at the last visit still is.
            if known_absent:
                return None
            raise
        await self._set_absent(file.key, False)
        return file.key

    async def _download(
        self, file: _File, entry: FileEntry | None, older: BlobInfo | None, progress: TransferProgress
    ) -> None:
        """Download a file, unless another tab or process does so at the same time: then wait for it."""
        progress.initiate()
        watching = asyncio.ensure_future(self._watch(file.key, progress))
        try:
            async with self._platform.lock(f"download:{'/'.join((file.key.owner, file.revision, file.path))}"):
                watching.cancel()
                if await self._has_come(file, entry, older, progress):
                    return
                if entry is None and LARGE.search(file.path):
                    entry = await self._index.pointer(file.model, file.revision, file.path)
                request = FileRequest(
                    url=file.url,
                    key=file.key,
                    expected=entry,
                    headers=self._headers,
                    metadata=self._metadata(file),
                    stall_seconds=self._stall_seconds,
                )
                try:
                    await download(self._platform, request, progress)
                except DownloadError:
                    # Meanwhile it may have been imported.
                    if await self._has_come(file, entry, older, progress):
                        return
                    raise
        except BaseException:
            progress.done(ok=False)
            raise
        finally:
            watching.cancel()
        progress.done()

    async def _has_come(
        self, file: _File, entry: FileEntry | None, older: BlobInfo | None, progress: TransferProgress
    ) -> bool:
        """Whether somebody else has stored the file since `older` was looked up."""
        newer = await self._platform.blobs.info(file.key)
        if newer is None or (older is not None and newer.updated == older.updated):
            return False
        if entry is not None and not await self._is_same(newer, entry):
            return False
        progress.expect(newer.size)
        progress.done()
        return True

    def _metadata(self, file: _File) -> dict[str, Any]:
        # The engine itself is noted once it has been made.
        uses = [] if file.task_name is None else [(file.task_name, None)]
        return {"model": file.model, "uses": plain_uses(uses), "lastUsed": self._platform.now()}

    async def _watch(self, key: BlobKey, progress: TransferProgress) -> None:
        """Tell how far another tab has come."""
        while True:
            await self._platform.sleep(_WATCH_SECONDS)
            draft = await self._platform.blobs.draft(key)
            if draft is not None:
                progress.reach(draft[1])

    async def _is_current(self, file: _File, stored: BlobInfo, entry: FileEntry | None) -> bool:
        if entry is not None:
            counts = await self._counts(file, stored, entry)
            if counts and not await self._is_same(stored, entry):
                _logger.warning("%s is older than its hub's list, but the hub does not answer: it is used", file.url)
            return counts
        if is_pinned(file.revision):
            return True
        name = (file.model, file.revision)
        if file.path == MANIFEST:
            self._silent.add(name)
        try:
            response = await self._platform.request(
                file.url, method="HEAD", headers=self._headers, timeout=HEAD_SECONDS
            )
        except NetworkError:
            return True
        await response.close()
        if file.path == MANIFEST and response.status == 200:
            self._silent.discard(name)
        mine, theirs = _weakened(stored.metadata.get("etag")), _weakened(response.headers.get("etag"))
        # A hub that tells no ETag, or is in trouble, says nothing against the stored copy.
        return response.status != 200 or not theirs or mine == theirs

    async def _counts(self, file: _File, stored: BlobInfo, entry: FileEntry) -> bool:
        """Whether a stored file is the one of the list, or as good as it, since its hub does not answer."""
        return await self._is_same(stored, entry) or not self._index.is_confirmed(file.model, file.revision)

    async def _is_same(self, stored: BlobInfo, entry: FileEntry) -> bool:
        if stored.size != entry.size:
            return False
        if entry.sha256:
            return stored.sha256 == entry.sha256
        git_oid = stored.metadata.get("gitOid")
        # What was imported came without git's name. Of large files nobody works it out.
        if entry.git_oid and not git_oid and stored.size <= _LARGEST_READ:
            git_oid = git_oid_of(await self._platform.blobs.read(stored.key))
            async with self._platform.lock(LOCK):
                now = await self._platform.blobs.info(stored.key)
                if now is not None and now.updated == stored.updated:
                    await self._platform.blobs.update({stored.key: {**now.metadata, "gitOid": git_oid}})
        return not (entry.git_oid and git_oid) or git_oid == entry.git_oid

    async def _ask_for_size(self, file: _File) -> tuple[bool, int | None]:
        """Whether the hub has a file, and its size."""
        absent = await self._is_absent(file.key)
        if absent and is_pinned(file.revision):
            return False, None
        try:
            response = await self._platform.request(
                file.url,
                method="HEAD",
                headers=self._headers,
                timeout=HEAD_SECONDS if absent else None,
                stall_seconds=self._stall_seconds,
            )
        except NetworkError:
            # Offline, what was absent at the last visit still is.
            return not absent, None
        await response.close()
        if response.status in {404, 410}:
            await self._set_absent(file.key, True)
            return False, None
        if response.status != 200:
            return not absent, None
        linked = {**response.headers, **response.redirect_headers}.get("x-linked-size", "")
        if linked.isascii() and linked.isdigit() and len(linked) <= 15:
            return True, int(linked)
        return True, content_length(response, self._platform.environment, identity=False)

    async def _is_absent(self, key: BlobKey) -> bool:
        absent = await self._platform.documents.get(absence_document(key.owner, key.revision))
        return isinstance(absent, list) and key.path in absent

    async def _set_absent(self, key: BlobKey, absent: bool) -> None:
        name = absence_document(key.owner, key.revision)
        async with self._absences:
            known = await self._platform.documents.get(name)
            paths = {path for path in known if isinstance(path, str)} if isinstance(known, list) else set()
            if (key.path in paths) == absent:
                return
            await self._platform.documents.put(name, sorted(paths ^ {key.path}))


def _weakened(etag: object) -> str:
    """An ETag without the mark that servers add when they compress."""
    return etag.removeprefix("W/") if isinstance(etag, str) else ""
