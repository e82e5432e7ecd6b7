"""A model hub seen through the store: files are downloaded once, then read from here."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

from pywebml.errors import DownloadError, FileNotFoundOnHubError, IntegrityError
from pywebml.hub.addresses import HubAddress, check_path, check_revision, is_pinned
from pywebml.hub.download import download
from pywebml.hub.manifest import MANIFEST, FileEntry, parse_manifest
from pywebml.platform import BlobInfo, BlobKey, NetworkError, Platform
from pywebml.progress import ProgressCallback, TransferProgress, ignore_progress
from pywebml.sharing import SharedWork

_KIND = "model"
_HEAD_SECONDS = 1.0
_LARGEST_READ = 64 * 1024 * 1024
# How long a branch's manifest is taken for the newest: one start reads many files of one model.
_FRESH_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model, in one revision, as far as it is stored.

    Attributes:
        model: `org/name`.
        revision: Branch, tag or commit.
        files: How many are stored.
        size: Of all of them, in bytes.
        updated: When the newest was written, seconds since the epoch.
        task_names: Tasks for which they were downloaded.
    """

    model: str
    revision: str
    files: int
    size: int
    updated: float
    task_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    """A file that is asked for."""

    model: str
    revision: str
    path: str
    url: str
    key: BlobKey
    task_name: str | None
    engine_id: str | None
    required: bool

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
    with the hub's (by the manifest's hash, else by ETag); without an answer within a second the stored copy counts.

    Args:
        platform: Where requests go out and files are kept.
        root_url: `https://…/`, or relative to the page.
        url_template: Words, `{model}` and `{revision}`, with slashes between them.
        default_revision: For callers who give none.
        uses_manifest: Whether the hub has a `manifest.json` beside each model's files.

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
        uses_manifest: bool = True,
    ) -> None:
        self.address = HubAddress.of(
            root_url,
            url_template,
            base_url=platform.environment.base_url,
            uses_manifest=uses_manifest,
        )
        self.default_revision = check_revision(default_revision)
        self._platform = platform
        self._transfers: SharedWork[tuple[BlobKey, bool], BlobKey | None] = SharedWork()
        self._manifests: dict[tuple[str, str], tuple[float, Mapping[str, FileEntry] | None]] = {}
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
            FileNotFoundOnHubError: The hub has no such file.
            DownloadError: The hub could not be reached, or stopped in the middle.
            IntegrityError: Size, hash or kind of the bytes is wrong.
            StoreError: There is no room, or the store cannot be used.
        """
        revision = self.default_revision if revision is None else revision
        file = _File(
            model=model,
            revision=revision,
            path=path,
            url=self.address.file_url(model, revision, path),
            key=self._key(model, revision, path),
            task_name=task_name,
            engine_id=engine_id,
            required=required,
        )
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

    async def has_file(self, model: str, revision: str | None, path: str) -> bool:
        """Whether a file is stored, whole. Makes no request."""
        revision = self.default_revision if revision is None else revision
        return await self._platform.blobs.info(self._key(model, revision, path)) is not None

    async def manifest(self, model: str, revision: str | None) -> Mapping[str, FileEntry] | None:
        """The hub's complete list of a model's files; None where it has none.

        Raises:
            DownloadError: The hub could not be reached.
            IntegrityError: The manifest is not one.
        """
        if not self.address.uses_manifest:
            return None
        revision = self.default_revision if revision is None else revision
        name = (self.address.owner(model), revision)
        read, entries = self._manifests.get(name, (0.0, None))
        now = self._platform.monotonic()
        if name in self._manifests and (is_pinned(revision) or now - read < _FRESH_SECONDS):
            return entries
        key = await self.get_file(model, revision, MANIFEST, required=False)
        entries = None
        if key is not None:
            try:
                entries = parse_manifest(await self._read(key), self.address.file_url(model, revision, MANIFEST))
            except IntegrityError:
                # The next try shall ask the hub again.
                await self._platform.blobs.delete([key])
                raise
        self._manifests[name] = (now, entries)
        return entries

    async def list_models(self) -> list[ModelInfo]:
        """The stored models of this hub, ordered by model and revision."""
        models: dict[tuple[str, str], list[BlobInfo]] = {}
        prefix = self.address.owner_prefix
        for info in await self._platform.blobs.list(_KIND):
            if info.key.owner.startswith(prefix):
                name = (info.key.owner.removeprefix(prefix), info.key.revision)
                models.setdefault(name, []).append(info)
        return [
            ModelInfo(
                model=model,
                revision=revision,
                files=len(infos),
                size=sum(info.size for info in infos),
                updated=max(info.updated for info in infos),
                task_names=tuple(sorted({name for info in infos for name in _task_names(info)})),
            )
            for (model, revision), infos in sorted(models.items())
        ]

    async def list_files(self, model: str, revision: str | None = None) -> list[BlobInfo]:
        """The stored files of a model, in one revision or (None) in all."""
        owner = self.address.owner(model)
        return [
            info
            for info in await self._platform.blobs.list(_KIND)
            if info.key.owner == owner and revision in {None, info.key.revision}
        ]

    async def delete_model(self, model: str, revision: str | None = None) -> int:
        """Delete a model's stored files, in one revision or (None) in all; returns how many bytes they had."""
        return await self._delete(await self.list_files(model, revision))

    async def delete_other_revisions(self, model: str, keep: Collection[str], *, task_name: str | None = None) -> int:
        """Delete a model's stored files of all revisions but some; returns how many bytes they had.

        Args:
            model: `org/name`.
            keep: Revisions that stay.
            task_name: Delete only what no other task has asked for.
        """
        files = [info for info in await self.list_files(model) if info.key.revision not in keep]
        return await self._delete(
            [info for info in files if task_name is None or set(_task_names(info)) <= {task_name}]
        )

    async def _delete(self, infos: list[BlobInfo]) -> int:
        await self._platform.blobs.delete([info.key for info in infos])
        for owner, revision in {(info.key.owner, info.key.revision) for info in infos}:
            self._manifests.pop((owner, revision), None)
            await self._platform.documents.delete(_absence_document(owner, revision))
        return sum(info.size for info in infos)

    def _key(self, model: str, revision: str, path: str) -> BlobKey:
        return BlobKey(_KIND, self.address.owner(model), check_revision(revision), check_path(path))

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

    async def _obtain(self, file: _File, emit: ProgressCallback) -> BlobKey | None:
        """The file's key, or None when the hub does not have it."""
        entry = None
        if file.path != MANIFEST:
            manifest = await self.manifest(file.model, file.revision)
            # A manifest lists every file, so that asking for one more could only bring a 404.
            if manifest is not None and file.path not in manifest:
                if not file.required:
                    return None
                raise FileNotFoundOnHubError(
                    f"The hub has no file {file.path!r} of {file.model} ({file.revision}): the model's {MANIFEST} does "
                    f"not list {file.url}. Check model id, revision and file name.",
                    url=file.url,
                    status=404,
                )
            entry = manifest[file.path] if manifest is not None else None
        stored = await self._platform.blobs.info(file.key)
        if stored is not None and await self._is_current(file, stored, entry):
            progress = file.progress("loading_from_cache", emit)
            progress.initiate()
            progress.expect(stored.size)
            progress.done()
            return file.key
        # A required file is asked for again, since its hub may have been mended.
        known_absent = not file.required and stored is None and await self._is_absent(file.key)
        if known_absent and is_pinned(file.revision):
            return None
        try:
            await download(
                self._platform,
                file.url,
                file.key,
                expected=entry,
                metadata={
                    "model": file.model,
                    "revision": file.revision,
                    "taskNames": [] if file.task_name is None else [file.task_name],
                },
                progress=file.progress("downloading", emit),
            )
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

    async def _is_current(self, file: _File, stored: BlobInfo, entry: FileEntry | None) -> bool:
        if entry is not None:
            return (stored.size, stored.sha256) == (entry.size, entry.sha256)
        if is_pinned(file.revision):
            return True
        try:
            response = await self._platform.request(file.url, method="HEAD", timeout=_HEAD_SECONDS)
        except NetworkError:
            return True
        await response.close()
        mine, theirs = _strong(stored.metadata.get("etag")), _strong(response.headers.get("etag"))
        # A hub that tells no ETag, or is in trouble, says nothing against the stored copy.
        return response.status != 200 or not theirs or mine == theirs

    async def _is_absent(self, key: BlobKey) -> bool:
        absent = await self._platform.documents.get(_absence_document(key.owner, key.revision))
        return isinstance(absent, list) and key.path in absent

    async def _set_absent(self, key: BlobKey, absent: bool) -> None:
        name = _absence_document(key.owner, key.revision)
        async with self._absences:
            known = await self._platform.documents.get(name)
            paths = {path for path in known if isinstance(path, str)} if isinstance(known, list) else set()
            if (key.path in paths) == absent:
                return
            await self._platform.documents.put(name, sorted(paths ^ {key.path}))


def _absence_document(owner: str, revision: str) -> str:
    """Where it stands which files a hub did not have."""
    return f"hub-absent/{owner}@{revision}"


def _task_names(info: BlobInfo) -> list[str]:
    names = info.metadata.get("taskNames")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _strong(etag: object) -> str:
    """An ETag without the mark that servers add when they compress."""
    return etag.removeprefix("W/") if isinstance(etag, str) else ""
