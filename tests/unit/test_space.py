"""Room for models: what goes, what stays, and what the error says when there is none."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pywebml import configure, create_engine, is_cached, prefetch, stored_models
from pywebml.errors import QuotaExceededError
from pywebml.hub import HubAddress, Selection, StoredModels
from pywebml.hub.archive import import_models
from pywebml.hub.space import _activity, in_use, make_room, models_in_use, room_for
from pywebml.platform import BlobKey, Platform, StoreUsage
from pywebml.platform.native import NativePlatform
from pywebml.progress import TransferProgress, ignore_progress
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
    with in_use(platform, {(HUB, "org/c", "main")}):
        await make_room(platform, 500, limit=1000)
    assert await names(platform) == ["org/b", "org/c"]


async def test_nothing_goes_when_that_would_not_be_enough(platform: Platform) -> None:
    await fill(platform)
    await StoredModels(platform).pin(Selection(model="org/b"))
    with in_use(platform, {(HUB, "org/a", "main")}), pytest.raises(QuotaExceededError) as caught:
        await make_room(platform, 801, limit=1000)
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


async def suspend(platform: Platform, name: str, size: int) -> BlobKey:
    """An unfinished download."""
    key = BlobKey("model", f"{HUB}org/new", "main", name)
    writer = await platform.blobs.open_writer(key, "token")
    await writer.write(bytes(size))
    await writer.suspend()
    return key


async def unfinished(platform: Platform) -> list[str]:
    return sorted(key.path for key, _ in await platform.blobs.drafts())


async def test_unfinished_downloads_make_room_before_models_and_only_as_many_as_needed(platform: Platform) -> None:
    await fill(platform)
    for name in ("a", "b"):
        await suspend(platform, name, 150)
    await make_room(platform, 100, limit=1000)
    assert len(await unfinished(platform)) == 2
    await make_room(platform, 101, limit=1000)
    assert len(await unfinished(platform)) == 1
    await make_room(platform, 401, limit=1000)
    assert await unfinished(platform) == []
    assert await names(platform) == ["org/a", "org/c"]


async def test_unfinished_downloads_make_room_without_a_limit_too(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(platform)
    await suspend(platform, "a", 100)
    with_available(platform, 50, monkeypatch)
    with pytest.raises(QuotaExceededError, match=r"unfinished downloads of 100 bytes.*drop_drafts.*dropUnfinished"):
        await make_room(platform, 151, limit=None)
    assert await unfinished(platform) == ["a"]
    await make_room(platform, 150, limit=None)
    assert await unfinished(platform) == []
    assert await names(platform) == ["org/a", "org/b", "org/c"]


async def test_unfinished_downloads_of_what_is_about_to_come_stay(platform: Platform) -> None:
    mine, theirs = await suspend(platform, "mine", 40), await suspend(platform, "theirs", 30)
    await suspend(platform, "stale", 30)
    async with (
        room_for(platform, {theirs: 30}, limit=100),
        room_for(platform, {mine: 70}, limit=100),
    ):
        assert await unfinished(platform) == ["mine", "theirs"]


async def test_unfinished_download_that_goes_on_elsewhere_makes_no_room(platform: Platform) -> None:
    writer = await platform.blobs.open_writer(BlobKey("model", f"{HUB}org/new", "main", "a"), "token")
    await writer.write(bytes(2_000_000))
    await put(platform, "org/a", 100, 1.0)
    with pytest.raises(QuotaExceededError):
        await make_room(platform, 100, limit=2_000_000)
    assert await names(platform) == ["org/a"]
    assert await writer.finish() == (2_000_000, hashlib.sha256(bytes(2_000_000)).hexdigest())
    await writer.abort()


NEW = BlobKey("model", f"{HUB}org/new", "main", "a")
OTHER = BlobKey("model", f"{HUB}org/other", "main", "a")


async def test_room_is_kept_for_what_is_about_to_come(platform: Platform) -> None:
    await put(platform, "org/a", 100, 1.0)
    async with room_for(platform, {NEW: 600}, limit=1000) as awaited:
        with pytest.raises(QuotaExceededError, match="600 bytes are being downloaded"):
            async with room_for(platform, {OTHER: 401}, limit=1000):
                pass
        # Both want the same file: it comes once.
        async with room_for(platform, {NEW: 600, OTHER: 300}, limit=1000):
            assert await names(platform) == ["org/a"]
        await put(platform, "org/new", 600, 2.0)
        del awaited[NEW]
        with in_use(platform, {(HUB, "org/new", "main")}):
            await make_room(platform, 300, limit=1000)
            assert await names(platform) == ["org/a", "org/new"]
            await make_room(platform, 400, limit=1000)
    assert await names(platform) == ["org/new"]


async def test_room_is_not_kept_for_bytes_that_are_there(platform: Platform) -> None:
    writer = await platform.blobs.open_writer(NEW, "token")
    async with room_for(platform, {NEW: 3_000_000}, limit=4_000_000):
        await writer.write(bytes(2_500_000))
        await writer.suspend()
        await make_room(platform, 1_000_000, limit=4_000_000)
        with pytest.raises(QuotaExceededError, match="500000 bytes are being downloaded"):
            await make_room(platform, 1_000_001, limit=4_000_000)
    # Nobody goes on with it any more.
    await make_room(platform, 4_000_000, limit=4_000_000)


async def test_room_that_was_refused_is_not_kept(platform: Platform) -> None:
    with pytest.raises(QuotaExceededError):
        async with room_for(platform, {NEW: 1001}, limit=1000):
            pass
    async with room_for(platform, {OTHER: 1000}, limit=1000):
        pass


async def test_those_who_want_room_at_once_get_it_one_after_the_other(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = platform.blobs.usage

    async def slow() -> StoreUsage:
        # Time for the other one to come as far.
        for _ in range(5):
            await platform.blobs.list("model")
        return await usage()

    monkeypatch.setattr(platform.blobs, "usage", slow)

    async def take(key: BlobKey) -> None:
        try:
            async with room_for(platform, {key: 600}, limit=1000):
                outcomes.append("room")
                if len(outcomes) < 2:
                    await both_know.wait()
        except QuotaExceededError:
            outcomes.append("no room")
        both_know.set()

    outcomes: list[str] = []
    both_know = asyncio.Event()
    await asyncio.gather(*(take(key) for key in (NEW, OTHER)))
    assert outcomes == ["room", "no room"]


async def test_model_that_comes_into_use_while_room_is_made_stays(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(platform, "org/a", 100, 1.0)
    delete = StoredModels.delete_unpinned
    with contextlib.ExitStack() as uses:

        async def use_and_delete(*args: Any) -> int:
            uses.enter_context(in_use(platform, {(HUB, "org/a", "main")}))
            return await delete(*args)

        monkeypatch.setattr(StoredModels, "delete_unpinned", use_and_delete)
        await make_room(platform, 100, limit=100)
    assert await names(platform) == ["org/a"]


async def test_model_is_in_use_until_the_last_user_is_gone(platform: Platform) -> None:
    one, two = (HUB, "org/a", "main"), (HUB, "org/b", "main")
    with in_use(platform, {one}):
        with in_use(platform, {one, two}):
            assert models_in_use(platform) == {one, two}
        assert models_in_use(platform) == {one}
    assert models_in_use(platform) == set()


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
        with in_use(platform, {(HUB, name, "main") for name in keep}):
            await make_room(platform, needed, limit=limit)
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


OPTIONS: dict[str, Any] = {"task_name": TASK, "model_revision": "v1.0.0", "dtype": "fp32"}


def publish(server: FaultServer, *models: str, folder: str = "hub") -> None:
    for name in models:
        TinyModel().write(server.root / folder / "tests" / name / "v1.0.0")


async def requested(server: FaultServer, pattern: str) -> None:
    while not server.active(pattern):  # noqa: ASYNC110 (what is waited for has no event)
        await asyncio.sleep(0.005)


@pytest.mark.usefixtures("surroundings")
async def test_import_leaves_the_model_of_a_live_engine_alone(server: FaultServer, platform: NativePlatform) -> None:
    publish(server, "one")
    publish(server, "two", folder="offline")
    address = HubAddress.of(f"{server.url}/hub/", "{model}/{revision}")

    async def import_two(limit: int) -> None:
        def start(_model: str, _revision: str, _path: str, url: str) -> TransferProgress:
            return TransferProgress(ignore_progress, "importing", url, {})

        await import_models(platform, address, server.root / "offline", limit=limit, start_progress=start)

    async with await create_engine(**OPTIONS, model_id="tests/one"):
        limit = (await platform.blobs.usage()).files * 3 // 2
        with pytest.raises(QuotaExceededError):
            await import_two(limit)
        assert await names(platform) == ["tests/one"]
    await import_two(limit)
    assert await names(platform) == ["tests/two"]


async def test_imported_model_is_in_use_and_has_room_until_it_is_there(
    server: FaultServer, platform: NativePlatform
) -> None:
    publish(server, "one", folder="offline")
    awaited: list[int] = []

    def start(_model: str, _revision: str, _path: str, url: str) -> TransferProgress:
        assert models_in_use(platform) == {(HUB, "tests/one", "v1.0.0")}
        awaited.extend(len(files) for files in _activity(platform).awaited)
        return TransferProgress(ignore_progress, "importing", url, {})

    address = HubAddress.of(f"https://{HUB}", "{model}/{revision}")
    await import_models(platform, address, server.root / "offline", start_progress=start)
    assert awaited == list(range(len(awaited), 0, -1))
    assert models_in_use(platform) == set()
    assert _activity(platform).awaited == []


@pytest.mark.usefixtures("surroundings")
async def test_no_room_is_kept_for_files_that_have_come(server: FaultServer, platform: NativePlatform) -> None:
    publish(server, "one")
    server.fault("*.onnx", "stall", 100, times=1)
    fetching = asyncio.ensure_future(prefetch(**OPTIONS, model_id="tests/one"))
    await requested(server, "*.onnx")
    [awaited] = _activity(platform).awaited
    async with asyncio.timeout(10):
        while len(awaited) > 1:  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)
    assert [key.path for key in awaited] == ["onnx/model.onnx"]
    server.state.release()
    await fetching
    assert awaited == {}


@pytest.mark.usefixtures("surroundings")
async def test_prefetch_leaves_the_files_of_another_prefetch_alone(
    server: FaultServer, platform: NativePlatform
) -> None:
    publish(server, "one", "two")
    await prefetch(**OPTIONS, model_id="tests/one")
    configure(max_cache_bytes=(await platform.blobs.usage()).files * 3 // 2)
    await (await stored_models()).delete(Selection(model="tests/one"))
    server.fault("*/one/*/onnx/model.onnx", "stall", 100, times=1)
    first = asyncio.ensure_future(prefetch(**OPTIONS, model_id="tests/one"))
    await requested(server, "*/one/*/onnx/model.onnx")
    with pytest.raises(QuotaExceededError, match="are being downloaded"):
        await prefetch(**OPTIONS, model_id="tests/two")
    server.state.release()
    await first
    assert await is_cached(**OPTIONS, model_id="tests/one")


@pytest.mark.usefixtures("surroundings")
async def test_engine_that_is_made_while_another_one_is_planned_keeps_its_model(
    server: FaultServer, platform: NativePlatform
) -> None:
    publish(server, "one", "two")
    await prefetch(**OPTIONS, model_id="tests/two")
    configure(max_cache_bytes=(await platform.blobs.usage()).files * 3 // 2)
    server.fault("*/one/*/config.json", "stall", 5, times=1)
    first = asyncio.ensure_future(create_engine(**OPTIONS, model_id="tests/one"))
    await requested(server, "*/one/*/config.json")
    async with await create_engine(**OPTIONS, model_id="tests/two"):
        server.state.release()
        with pytest.raises(QuotaExceededError):
            await first
        assert await is_cached(**OPTIONS, model_id="tests/two")


@pytest.mark.usefixtures("surroundings")
async def test_limit_holds_for_downloads_at_the_same_time(server: FaultServer, platform: NativePlatform) -> None:
    publish(server, "one", "two")
    await prefetch(**OPTIONS, model_id="tests/one")
    size = (await platform.blobs.usage()).files
    await (await stored_models()).delete(Selection(model="tests/one"))
    configure(max_cache_bytes=size * 3 // 2)
    server.fault("*.onnx", "slow", 5000)
    results = await asyncio.gather(
        *(prefetch(**OPTIONS, model_id=f"tests/{name}") for name in ("one", "two")), return_exceptions=True
    )
    assert [isinstance(result, QuotaExceededError) for result in results].count(True) == 1
    assert (await platform.blobs.usage()).files <= size * 3 // 2
