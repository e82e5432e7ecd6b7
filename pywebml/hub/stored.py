"""The stored models of all hubs: what is there, who uses it, and how it goes away again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pywebml.errors import OptionsError
from pywebml.hub.listing import MANIFEST
from pywebml.platform import BlobInfo, BlobKey, BlobWriter, Platform

KIND = "model"
LOCK = "model-metadata"

Use: TypeAlias = "tuple[str | None, str | None]"
"""Task and engine that a file is kept for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which stored files are meant; None: any.

    Attributes:
        hub: Host and path of a hub, like `huggingface.co/`.
        model: `organisation/name`.
        revision: Branch, tag or commit.
        task_name: Only files that this task uses.
        engine_id: Only files that the engine of this id uses.
    """

    hub: str | None = None
    model: str | None = None
    revision: str | None = None
    task_name: str | None = None
    engine_id: str | None = None

    def includes(self, file: StoredFile) -> bool:
        """Whether a file is meant."""
        named = (
            (self.hub, file.hub),
            (self.model, file.model),
            (self.revision, file.revision),
        )
        return all(wanted in {None, found} for wanted, found in named) and (
            not self.by_use or any(self.includes_use(use) for use in file.uses)
        )

    def includes_use(self, use: Use) -> bool:
        """Whether a use is meant."""
        return self.task_name in {None, use[0]} and self.engine_id in {None, use[1]}

    @property
    def by_use(self) -> bool:
        """Whether a task or an engine is named."""
        return self.task_name is not None or self.engine_id is not None


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A stored file of a model.

    Attributes:
        key: Its name in the store.
        hub: Host and path of its hub.
        model: `organisation/name`.
        revision: Branch, tag or commit.
        path: Inside the model.
        size: In bytes.
        sha256: Of its bytes.
        updated: When it was written, seconds since the epoch.
        last_used: When an engine was made from it, or when it was written.
        verified: When its bytes were last compared with the hash; they were when it was written.
        pinned: Whether it stays when room is made.
        uses: Tasks and engines that it is kept for.
    """

    key: BlobKey
    hub: str
    model: str
    revision: str
    path: str
    size: int
    sha256: str
    updated: float
    last_used: float
    verified: float
    pinned: bool
    uses: tuple[Use, ...]

    @classmethod
    def of(cls, info: BlobInfo) -> StoredFile:
        """What the store says of it. What is missing in the metadata, or is something else, counts as not said."""
        metadata = info.metadata
        model = metadata.get("model")
        if not isinstance(model, str) or not info.key.owner.endswith(f"/{model}"):
            # Of names alone, an organisation and a name are the likeliest end.
            model = "/".join(info.key.owner.split("/")[-2:])
        return cls(
            key=info.key,
            hub=info.key.owner.removesuffix(model),
            model=model,
            revision=info.key.revision,
            path=info.key.path,
            size=info.size,
            sha256=info.sha256,
            updated=info.updated,
            last_used=_number(metadata.get("lastUsed"), info.updated),
            verified=_number(metadata.get("verified"), info.updated),
            pinned=metadata.get("pinned") is True,
            uses=uses_of(metadata),
        )


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model, in one revision, as far as it is stored.

    Attributes:
        hub: Host and path of its hub.
        model: `organisation/name`.
        revision: Branch, tag or commit.
        files: How many are stored.
        size: Of all of them, in bytes.
        updated: When the newest was written, seconds since the epoch.
        last_used: When an engine was last made from any.
        verified: When all of them had been compared with their hashes.
        pinned: Whether it stays when room is made.
        task_names: Tasks that it is kept for.
        engine_ids: Engines that it is kept for, as far as they were given a name.
    """

    hub: str
    model: str
    revision: str
    files: int
    size: int
    updated: float
    last_used: float
    verified: float
    pinned: bool
    task_names: tuple[str, ...]
    engine_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """How a stored file was found.

    Attributes:
        file: The file.
        ok: Whether its bytes are those that were stored. If not, it has been removed.
    """

    file: StoredFile
    ok: bool


class StoredModels:
    """Models in the store, whatever hub they came from.

    Args:
        platform: Where they are kept.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def files(self, selection: Selection | None = None) -> list[StoredFile]:
        """The selected files, ordered by hub, model, revision and path."""
        wanted = selection or Selection()
        files = [StoredFile.of(info) for info in await self._platform.blobs.list(KIND)]
        return [file for file in files if wanted.includes(file)]

    async def models(self, selection: Selection | None = None) -> list[ModelInfo]:
        """The selected models, each in one revision, in the same order."""
        groups: dict[tuple[str, str, str], list[StoredFile]] = {}
        for file in await self.files(selection):
            groups.setdefault((file.hub, file.model, file.revision), []).append(file)
        return [
            ModelInfo(
                hub=hub,
                model=model,
                revision=revision,
                files=len(files),
                size=sum(file.size for file in files),
                updated=max(file.updated for file in files),
                last_used=max(file.last_used for file in files),
                verified=min(file.verified for file in files),
                pinned=any(file.pinned for file in files),
                task_names=_names(use[0] for file in files for use in file.uses),
                engine_ids=_names(use[1] for file in files for use in file.uses),
            )
            for (hub, model, revision), files in groups.items()
        ]

    async def delete(self, selection: Selection) -> int:
        """Delete the selected files.

        With a task or an engine, their use of the files ends, and only files that nobody else uses go.

        Returns:
            How many bytes were freed.

        Raises:
            OptionsError: Nothing is named: that would be everything.
        """
        if selection == Selection():
            raise OptionsError(
                "Say what to delete: a model, revision, task, engine or hub. To delete everything, name each model of "
                "the list.",
                field="selection",
                value=None,
            )
        return await self._end_uses(selection.includes, selection)

    async def delete_unpinned(self, wanted: Callable[[StoredFile], bool]) -> int:
        """Delete these files, whoever uses them, but none of a pinned model; returns how many bytes they had.

        Args:
            wanted: Which. Asked at the last moment, and of unfinished files too.
        """
        return await self._end_uses(wanted, Selection(), spare_pinned=True)

    async def purge_revisions(
        self, model: str, keep: Collection[str], selection: Selection | None = None, *, pinned: bool = False
    ) -> int:
        """Delete a model's files of all revisions but some.

        Args:
            model: `organisation/name`.
            keep: Revisions that stay.
            selection: Restricts what is deleted; with a task, only what no other task uses goes.
            pinned: Whether pinned revisions go too.

        Returns:
            How many bytes were freed.
        """
        chosen = selection or Selection()

        def wanted(file: StoredFile) -> bool:
            return file.model == model and file.revision not in keep and chosen.includes(file)

        return await self._end_uses(wanted, chosen, spare_pinned=not pinned)

    async def pin(self, selection: Selection, pinned: bool = True) -> int:
        """Have the selected models stay, or no longer stay, when room is made; returns how many files that are."""
        return await self._annotate(await self.files(selection), lambda _file: {"pinned": pinned})

    async def note_use(self, keys: Iterable[BlobKey], task_name: str | None, engine_id: str | None) -> None:
        """Remember that these files were fetched or loaded for an engine; None: one without a name of its own."""
        wanted = set(keys)
        files = [file for file in await self.files() if file.key in wanted]
        now = self._platform.now()

        def noted(file: StoredFile) -> dict[str, Any]:
            # What was fetched for the task alone is the engine's from now on.
            others = [use for use in file.uses if engine_id is None or use != (task_name, None)]
            return {"lastUsed": now, "uses": plain_uses([*others, (task_name, engine_id)])}

        await self._annotate(files, noted)

    async def verify(
        self, selection: Selection | None = None, on_checked: Callable[[Verification], None] = lambda _checked: None
    ) -> list[Verification]:
        """Compare the bytes of the selected files with the hashes that they were stored with. Damaged ones are removed.

        Args:
            selection: Which.
            on_checked: Gets every result as it comes.
        """
        results = []
        for file in await self.files(selection):
            ok = await self.is_intact(file.key)
            if ok:
                now = self._platform.now()
                await self._annotate([file], lambda _file, now=now: {"verified": now})  # type: ignore[misc]
            result = Verification(file, ok)
            on_checked(result)
            results.append(result)
        return results

    async def is_intact(self, key: BlobKey) -> bool:
        """Whether a file is there and its bytes are those that were stored. If they are not, it is removed."""
        blobs = self._platform.blobs
        while (info := await blobs.info(key)) is not None:
            if await blobs.verify(key):
                return True
            async with self._platform.lock(LOCK):
                current = await blobs.info(key)
                # What was put in its place meanwhile is looked at anew.
                if current is None or (current.updated, current.sha256) == (info.updated, info.sha256):
                    await blobs.delete([key])
                    return False
        return False

    async def _end_uses(
        self, wanted: Callable[[StoredFile], bool], ended: Selection, *, spare_pinned: bool = False
    ) -> int:
        """Delete files that nobody uses once some uses have ended. The lock: whoever notes a use meanwhile is heard."""
        async with self._platform.lock(LOCK):
            files = {info.key: (StoredFile.of(info), info) for info in await self._platform.blobs.list(KIND)}
            stored = [file for file, _ in files.values()]
            spared = {_place(file.key) for file in stored if file.pinned} if spare_pinned else set()
            gone: list[StoredFile] = []
            kept: dict[BlobKey, Mapping[str, Any]] = {}
            for file, info in files.values():
                if _place(file.key) in spared or not wanted(file):
                    continue
                remaining = [use for use in file.uses if not ended.includes_use(use)] if ended.by_use else []
                if remaining:
                    kept[file.key] = {**info.metadata, "uses": plain_uses(remaining)}
                else:
                    gone.append(file)
            gone += _lists_without_files(stored, gone)
            keys = {file.key for file in gone}
            await self._platform.blobs.update(kept)
            await self._platform.blobs.delete(keys)
            await self._drop_drafts(wanted, keys, {_place(file.key) for file in stored if file.key not in keys})
            for owner, revision in {_place(key) for key in keys}:
                for document in (absence_document(owner, revision), tree_document(owner, revision)):
                    await self._platform.documents.delete(document)
        return sum(file.size for file in gone)

    async def _drop_drafts(
        self, wanted: Callable[[StoredFile], bool], deleted: Collection[BlobKey], left: Collection[tuple[str, str]]
    ) -> None:
        """Drop what is unfinished of deleted files, and of models of which nothing is left."""
        emptied = {_place(key) for key in deleted}
        drafts = [
            key
            for key, size in await self._platform.blobs.drafts()
            if key.kind == KIND
            and _place(key) not in left
            and (_place(key) in emptied or wanted(StoredFile.of(BlobInfo(key, size, "", 0.0))))
        ]
        await self._platform.blobs.drop_drafts([*deleted, *drafts])

    async def _annotate(self, files: Collection[StoredFile], change: Callable[[StoredFile], Mapping[str, Any]]) -> int:
        """Change the metadata of files. The lock: two tabs could else each undo what the other has written."""
        if not files:
            return 0
        wanted = {file.key for file in files}
        async with self._platform.lock(LOCK):
            infos = [info for info in await self._platform.blobs.list(KIND) if info.key in wanted]
            await self._platform.blobs.update(
                {info.key: {**info.metadata, **change(StoredFile.of(info))} for info in infos}
            )
        return len(infos)


async def commit_file(platform: Platform, key: BlobKey, writer: BlobWriter, metadata: Mapping[str, Any]) -> BlobInfo:
    """Make a written file visible. If it takes the place of another, whether that is pinned, and its uses, stay as they
    are at this moment; uses in `metadata` are added to them."""
    async with platform.lock(LOCK):
        older = await platform.blobs.info(key)
        kept: dict[str, Any] = {}
        if older is not None and key.kind == KIND:
            uses = plain_uses([*uses_of(older.metadata), *uses_of(metadata)])
            kept = {"pinned": older.metadata.get("pinned") is True, "uses": uses}
        return await writer.commit({**metadata, **kept})


def _place(key: BlobKey) -> tuple[str, str]:
    return key.owner, key.revision


def _lists_without_files(stored: Collection[StoredFile], gone: Collection[StoredFile]) -> list[StoredFile]:
    """The manifests of models of which nothing else is left: nobody uses them for themselves."""
    deleted = {file.key for file in gone}
    left = [file for file in stored if file.key not in deleted]
    others = {_place(file.key) for file in left if file.path != MANIFEST}
    return [file for file in left if _place(file.key) in {_place(key) for key in deleted} - others]


def absence_document(owner: str, revision: str) -> str:
    """Where it stands which files a hub did not have."""
    return f"hub-absent/{owner}@{revision}"


def tree_document(owner: str, revision: str) -> str:
    """Where it stands which files a hub has, with their sizes and hashes."""
    return f"hub-tree/{owner}@{revision}"


def uses_of(metadata: Mapping[str, Any]) -> tuple[Use, ...]:
    """The uses in a file's metadata. Version 0.1 wrote the names of tasks alone."""
    uses, names = metadata.get("uses"), metadata.get("taskNames")
    if isinstance(uses, list):
        pairs = [tuple(use) for use in uses if isinstance(use, list) and len(use) == 2]
        return tuple((task, engine) for task, engine in pairs if _is_name(task) and _is_name(engine))
    return tuple((name, None) for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def plain_uses(uses: Iterable[Use]) -> list[list[str | None]]:
    """Uses as they stand in the metadata: each once."""
    return [list(use) for use in dict.fromkeys(uses)]


def _names(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({name for name in names if name is not None}))


def _is_name(value: object) -> bool:
    return value is None or isinstance(value, str)


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
