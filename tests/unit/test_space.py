"""Room for models: what goes, what stays, and what the error says when there is none."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pywebml import configure, create_engine, stored_models
from pywebml.errors import QuotaExceededError
from pywebml.hub import Selection, StoredModels
from pywebml.hub.space import make_room
from pywebml.platform import BlobKey, Platform, StoreUsage
from pywebml.platform.native import NativePlatform
from tests.faults.server import FaultServer
from tests.tiny_model import TinyModel

HUB = "hub.example/"
TASK = "feature-extraction"


async def put(platform: Platform, model: str, size: int, last_used: float, **metadata: Any) -> None:
    key = BlobKey("model", f"{HUB}{model}", "main", "onnx/model.onnx")
    writer = await platform.blobs.open_writer(key)
    await writer.write(bytes(size))
    await writer.finish()
    await writer.commit({"model": model, "lastUsed": last_used, **metadata})


async def names(platform: Platform) -> list[str]:
    return [model.model for model in await StoredModels(platform).models()]


def with_available(platform: Platform, available: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The surroundings allow only so many bytes more."""
    usage = platform.blobs.usage

    async def limited() -> StoreUsage:
        return dataclasses.replace(await usage(), available=available)

    monkeypatch.setattr(platform.blobs, "usage", limited)


async def fill(platform: Platform) -> None:
    await put(platform, "org/a", 100, 3.0)
    await put(platform, "org/b", 200, 1.0)
    await put(platform, "org/c", 300, 2.0)


@pytest.mark.parametrize(
    ("needed", "limit", "left"),
    [
        (0, 0, ["org/a", "org/b", "org/c"]),
        (1000, None, ["org/a", "org/b", "org/c"]),
        (400, 1000, ["org/a", "org/b", "org/c"]),
        (401, 1000, ["org/a", "org/c"]),
        (600, 1000, ["org/a", "org/c"]),
        (601, 1000, ["org/a"]),
        (900, 1000, ["org/a"]),
        (901, 1000, []),
        (1000, 1000, []),
    ],
)
async def test_models_that_were_not_used_for_the_longest_make_room(
    platform: Platform, needed: int, limit: int | None, left: list[str]
) -> None:
    await fill(platform)
    await make_room(platform, needed, limit=limit)
    assert await names(platform) == left


async def test_pinned_models_and_those_in_use_stay(platform: Platform) -> None:
    await fill(platform)
    await StoredModels(platform).pin(Selection(model="org/b"))
    await make_room(platform, 500, limit=1000, keep={(HUB, "org/c", "main")})
    assert await names(platform) == ["org/b", "org/c"]


async def test_nothing_goes_when_that_would_not_be_enough(platform: Platform) -> None:
    await fill(platform)
    await StoredModels(platform).pin(Selection(model="org/b"))
    with pytest.raises(QuotaExceededError) as caught:
        await make_room(platform, 801, limit=1000, keep={(HUB, "org/a", "main")})
    assert await names(platform) == ["org/a", "org/b", "org/c"]
    message = caught.value.message
    for words in ("801 more bytes", "600 bytes are stored", "max_cache_bytes is 1000", "org/c main (300 bytes)"):
        assert words in message
    assert "org/a" not in message
    assert "org/b" not in message
    assert "Nothing was deleted" in message
    assert (caught.value.details["needed"], caught.value.details["limit"]) == (801, 1000)


async def test_error_names_the_largest_models(platform: Platform) -> None:
    for number in range(5):
        await put(platform, f"org/{number}", 100 + number, number)
    with pytest.raises(QuotaExceededError) as caught:
        await make_room(platform, 2000, limit=1000)
    assert [name in caught.value.message for name in ("org/4", "org/3", "org/2", "org/1", "org/0")] == [
        *(True, True, True),
        *(False, False),
    ]


async def test_without_a_limit_nothing_goes_when_the_surroundings_have_no_room(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(platform)
    with_available(platform, 50, monkeypatch)
    await make_room(platform, 50, limit=None)
    with pytest.raises(QuotaExceededError, match="50 more fit into what the browser or disk allows") as caught:
        await make_room(platform, 51, limit=None)
    assert caught.value.details == {"needed": 51, "available": 50, "limit": None}
    assert await names(platform) == ["org/a", "org/b", "org/c"]


async def test_with_a_limit_models_also_go_when_the_surroundings_have_no_room(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(platform)
    with_available(platform, 50, monkeypatch)
    await make_room(platform, 251, limit=10_000)
    assert await names(platform) == ["org/a"]


async def test_unknown_room_is_taken_for_enough(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    with_available(platform, None, monkeypatch)
    await make_room(platform, 10**15, limit=None)
    with pytest.raises(QuotaExceededError, match="Free some space"):
        await make_room(platform, 10, limit=5)


async def test_unfinished_downloads_take_room_too(platform: Platform) -> None:
    await fill(platform)
    writer = await platform.blobs.open_writer(BlobKey("model", f"{HUB}org/new", "main", "a"), "token")
    await writer.write(bytes(300))
    await writer.suspend()
    await make_room(platform, 100, limit=1000)
    assert await names(platform) == ["org/a", "org/b", "org/c"]
    await make_room(platform, 101, limit=1000)
    assert await names(platform) == ["org/a", "org/c"]


@given(
    models=st.lists(st.tuples(st.integers(1, 50), st.integers(0, 9), st.booleans(), st.booleans()), max_size=5),
    needed=st.integers(0, 200),
    limit=st.integers(0, 200),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_afterwards_it_fits_or_nothing_has_changed(
    platform: Platform, models: list[tuple[int, int, bool, bool]], needed: int, limit: int
) -> None:
    await platform.blobs.delete([info.key for info in await platform.blobs.list("model")])
    for number, (size, used, pinned, _) in enumerate(models):
        await put(platform, f"org/{number}", size, used, pinned=pinned)
    before = {model.model: model for model in await StoredModels(platform).models()}
    keep = {f"org/{number}" for number, model in enumerate(models) if model[3]}
    try:
        await make_room(platform, needed, limit=limit, keep={(HUB, name, "main") for name in keep})
    except QuotaExceededError:
        assert await names(platform) == list(before)
        held = sum(model.size for name, model in before.items() if model.pinned or name in keep)
        assert needed + held > limit
        return
    left = {model.model: model for model in await StoredModels(platform).models()}
    gone = [model for name, model in before.items() if name not in left]
    assert needed == 0 or needed + sum(model.size for model in left.values()) <= limit
    assert not any(model.pinned or model.model in keep for model in gone)
    stayed = [model for model in left.values() if not model.pinned and model.model not in keep]
    assert all(old.last_used <= new.last_used for old in gone for new in stayed)


# Engines


@pytest.mark.usefixtures("surroundings")
async def test_engines_make_room_for_each_other_up_to_the_limit(server: FaultServer, platform: NativePlatform) -> None:
    for name in ("one", "two", "three"):
        TinyModel(hidden=8).write(server.root / "hub" / "tests" / name / "v1.0.0")
    options: dict[str, Any] = {"task_name": TASK, "model_revision": "v1.0.0", "dtype": "fp32"}
    async with await create_engine(**options, model_id="tests/one"):
        pass
    size = (await platform.blobs.usage()).files
    configure(max_cache_bytes=2 * size)
    async with await create_engine(**options, model_id="tests/two"):
        pass
    stored = await stored_models()
    assert [model.model for model in await stored.models()] == ["tests/one", "tests/two"]
    # Used again, so that the other one is the oldest.
    async with await create_engine(**options, model_id="tests/one"):
        pass
    async with await create_engine(**options, model_id="tests/three"):
        assert [model.model for model in await stored.models()] == ["tests/one", "tests/three"]
        assert (await platform.blobs.usage()).files <= 2 * size


@pytest.mark.usefixtures("surroundings")
async def test_model_of_a_live_engine_does_not_make_room(server: FaultServer, platform: NativePlatform) -> None:
    for name in ("one", "two"):
        TinyModel().write(server.root / "hub" / "tests" / name / "v1.0.0")
    options: dict[str, Any] = {"task_name": TASK, "model_revision": "v1.0.0", "dtype": "fp32"}
    async with await create_engine(**options, model_id="tests/one") as engine:
        size = (await platform.blobs.usage()).files
        configure(max_cache_bytes=size + size // 2)
        with pytest.raises(QuotaExceededError, match=f"max_cache_bytes is {size + size // 2}"):
            await create_engine(**options, model_id="tests/two")
        assert (await engine.run("cat")).shape == (1, 3, 8)
    async with await create_engine(**options, model_id="tests/two"):
        assert [model.model for model in await (await stored_models()).models()] == ["tests/two"]


@pytest.mark.usefixtures("surroundings")
async def test_stored_model_that_is_larger_than_a_new_limit_still_loads(server: FaultServer) -> None:
    TinyModel().write(server.root / "hub" / "tests" / "one" / "v1.0.0")
    options: dict[str, Any] = {
        "task_name": TASK,
        "model_id": "tests/one",
        "model_revision": "v1.0.0",
        "dtype": "fp32",
    }
    async with await create_engine(**options):
        pass
    configure(max_cache_bytes=10)
    async with await create_engine(**options) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
