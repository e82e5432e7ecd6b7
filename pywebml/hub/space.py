"""Room for models: made before they are downloaded, and kept for them while they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from pywebml.errors import QuotaExceededError
from pywebml.hub.stored import ModelInfo, StoredFile, StoredModels
from pywebml.platform import BlobKey, Platform

LOCK = "room"
_MOST_NAMED = 3

ModelName = tuple[str, str, str]
"""Hub, model and revision."""


@dataclass(slots=True)
class _Activity:
    """What goes on in one store.

    Attributes:
        uses: How often each model is in use.
        awaited: Files that room was made for and that are not there yet, with their sizes: one dictionary for each
            caller of `room_for`.
    """

    uses: Counter[ModelName] = field(default_factory=Counter)
    awaited: list[dict[BlobKey, int]] = field(default_factory=list)


_activities: WeakKeyDictionary[Platform, _Activity] = WeakKeyDictionary()


def _activity(platform: Platform) -> _Activity:
    return _activities.setdefault(platform, _Activity())


@contextmanager
def in_use(platform: Platform, models: Collection[ModelName]) -> Iterator[None]:
    """While in the block these models make no room for others.

    That holds for everybody on this platform. Another tab or process does not know of it: what it deletes is fetched
    again when it is needed again.
    """
    uses = _activity(platform).uses
    uses.update(models)
    try:
        yield
    finally:
        uses.subtract(models)


def models_in_use(platform: Platform) -> set[ModelName]:
    """The models that are in use now."""
    return {name for name, count in _activity(platform).uses.items() if count > 0}


@asynccontextmanager
async def room_for(
    platform: Platform, files: Mapping[BlobKey, int], *, limit: int | None
) -> AsyncIterator[dict[BlobKey, int]]:
    """Make room for files, and keep it for them while in the block.

    Args:
        platform: Where.
        files: Those that are not here yet, with their sizes in bytes; 0 while unknown.
        limit: See `make_room`.

    Returns:
        The files that room is kept for. Whoever has stored one takes it out.

    Raises:
        QuotaExceededError: There is not enough room.
    """
    awaited = dict(files)
    everything = _activity(platform).awaited
    # One after the other, so that nobody counts on room that somebody else is about to take.
    async with platform.lock(LOCK):
        needed = await _still_to_come(platform, awaited)
        await make_room(platform, needed, limit=limit, own=awaited)
        everything.append(awaited)
    try:
        yield awaited
    finally:
        everything[:] = [other for other in everything if other is not awaited]


async def make_room(
    platform: Platform, needed: int, *, limit: int | None, own: Collection[BlobKey] = frozenset()
) -> None:
    """See that `needed` more bytes can be stored, besides those that others are waiting for.

    Unfinished downloads that nobody goes on with make room first, the oldest before the others. With a limit, models
    follow that are neither pinned nor in use, those first that were not used for the longest time. Nothing is deleted
    unless that is enough.

    Args:
        platform: Where.
        needed: Bytes that are not here yet.
        limit: Most bytes that the store may hold; None: as many as the surroundings allow, and no model is deleted.
        own: The files that are going to be these bytes.

    Raises:
        QuotaExceededError: There is not enough room.
    """
    if needed <= 0:
        return
    others: dict[BlobKey, int] = {}
    for files in _activity(platform).awaited:
        others |= {key: size for key, size in files.items() if key not in own}
    reserved = await _still_to_come(platform, others)
    usage = await platform.blobs.usage()
    used = usage.files + usage.drafts
    missing = _missing(needed + reserved, used, usage.available, limit)
    if missing <= 0:
        return
    stored = StoredModels(platform)
    drafts: Counter[BlobKey] = Counter()
    for key, size in await platform.blobs.drafts():
        if key not in own and key not in others:
            drafts[key] += size
    models = sorted(await stored.models(), key=lambda model: model.last_used)
    busy = models_in_use(platform)
    free_to_go = [model for model in models if not model.pinned and _name(model) not in busy]
    if missing > sum(drafts.values()) + (0 if limit is None else sum(model.size for model in free_to_go)):
        raise _no_room(needed, reserved, used, usage.available, limit, free_to_go, sum(drafts.values()))
    missing -= await _drop_drafts(platform, drafts, missing)
    going: list[ModelInfo] = []
    for model in free_to_go if limit is not None else ():
        if missing <= 0:
            break
        going.append(model)
        missing -= model.size
    if missing > 0:
        # Somebody elsewhere is writing some of the drafts.
        raise _no_room(needed, reserved, used, usage.available, limit, free_to_go, 0)
    names = {_name(model) for model in going}
    await stored.delete_unpinned(lambda file: _name(file) in names - models_in_use(platform))


async def _still_to_come(platform: Platform, files: Mapping[BlobKey, int]) -> int:
    """Bytes of files that are not written yet."""
    drafts = [(size, await platform.blobs.draft(key)) for key, size in files.items()]
    return sum(max(0, size - (draft[1] if draft is not None else 0)) for size, draft in drafts)


async def _drop_drafts(platform: Platform, drafts: Mapping[BlobKey, int], missing: int) -> int:
    """Drop drafts in their order until `missing` bytes are free; returns how many really are."""
    going: dict[BlobKey, int] = {}
    for key, size in drafts.items():
        if sum(going.values()) < missing:
            going[key] = size
    await platform.blobs.drop_drafts(going)
    left = {key for key, _ in await platform.blobs.drafts()} if going else set()
    return sum(size for key, size in going.items() if key not in left)


def _name(model: ModelInfo | StoredFile) -> ModelName:
    return model.hub, model.model, model.revision


def _missing(needed: int, used: int, available: int | None, limit: int | None) -> int:
    """Bytes that must go for `needed` more to fit."""
    by_surroundings = 0 if available is None else needed - available
    by_limit = 0 if limit is None else used + needed - limit
    return max(by_surroundings, by_limit)


def _no_room(
    needed: int,
    reserved: int,
    used: int,
    available: int | None,
    limit: int | None,
    models: list[ModelInfo],
    unfinished: int,
) -> QuotaExceededError:
    facts = [f"{used} bytes are stored"]
    if reserved:
        facts.append(f"{reserved} bytes are being downloaded")
    if available is not None:
        facts.append(f"{available} more fit into what the browser or disk allows")
    if limit is not None:
        facts.append(f"max_cache_bytes is {limit}")
    largest = sorted(models, key=lambda model: -model.size)[:_MOST_NAMED]
    named = ", ".join(f"{model.model} {model.revision} ({model.size} bytes)" for model in largest)
    advice = f"Delete stored models, for example {named}" if named else "Free some space"
    if unfinished:
        advice += (
            f", drop the unfinished downloads of {unfinished} bytes (drop_drafts(); in JavaScript dropUnfinished())"
        )
    return QuotaExceededError(
        f"There is no room for {needed} more bytes: {', '.join(facts)}. {advice}, then try again. Nothing was deleted.",
        needed=needed,
        available=available,
        limit=limit,
    )
