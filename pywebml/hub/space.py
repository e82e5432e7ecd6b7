"""Room for a model before it is downloaded."""

from __future__ import annotations

from collections.abc import Collection

from pywebml.errors import QuotaExceededError
from pywebml.hub.stored import ModelInfo, Selection, StoredModels
from pywebml.platform import Platform

_MOST_NAMED = 3


async def make_room(
    platform: Platform, needed: int, *, limit: int | None, keep: Collection[tuple[str, str, str]] = ()
) -> None:
    """See that `needed` more bytes can be stored.

    With a limit, models that are not pinned make room, those first that were not used for the longest time. Nothing is
    deleted unless that is enough.

    Args:
        platform: Where.
        needed: Bytes that are not here yet.
        limit: Most bytes that the store may hold; None: as many as the surroundings allow, and nothing is deleted.
        keep: Hub, model and revision of models that must stay.

    Raises:
        QuotaExceededError: There is not enough room.
    """
    if needed <= 0:
        return
    usage = await platform.blobs.usage()
    missing = _missing(needed, usage.files + usage.drafts, usage.available, limit)
    if missing <= 0:
        return
    stored = StoredModels(platform)
    models = sorted(await stored.models(), key=lambda model: model.last_used)
    free_to_go = [model for model in models if not model.pinned and _name(model) not in keep]
    going: list[ModelInfo] = []
    for model in free_to_go if limit is not None else ():
        if missing <= 0:
            break
        going.append(model)
        missing -= model.size
    if missing > 0:
        raise _no_room(needed, usage.files + usage.drafts, usage.available, limit, free_to_go)
    for model in going:
        files = await stored.files(Selection(hub=model.hub, model=model.model, revision=model.revision))
        await stored.delete_files(files)


def _name(model: ModelInfo) -> tuple[str, str, str]:
    return model.hub, model.model, model.revision


def _missing(needed: int, used: int, available: int | None, limit: int | None) -> int:
    """Bytes that must go for `needed` more to fit."""
    by_surroundings = 0 if available is None else needed - available
    by_limit = 0 if limit is None else used + needed - limit
    return max(by_surroundings, by_limit)


def _no_room(
    needed: int, used: int, available: int | None, limit: int | None, models: list[ModelInfo]
) -> QuotaExceededError:
    facts = [f"{used} bytes are stored"]
    if available is not None:
        facts.append(f"{available} more fit into what the browser or disk allows")
    if limit is not None:
        facts.append(f"max_cache_bytes is {limit}")
    largest = sorted(models, key=lambda model: -model.size)[:_MOST_NAMED]
    named = ", ".join(f"{model.model} {model.revision} ({model.size} bytes)" for model in largest)
    advice = f"Delete stored models, for example {named}" if named else "Free some space"
    return QuotaExceededError(
        f"There is no room for {needed} more bytes: {', '.join(facts)}. {advice}, then try again. Nothing was deleted.",
        needed=needed,
        available=available,
        limit=limit,
    )
