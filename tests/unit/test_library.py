"""Models ahead of engines: prefetching, the events of all files together, and stored files that were damaged."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pywebml import (
    AbortController,
    PipelineOptions,
    ProgressEvent,
    create_engine,
    is_cached,
    list_engines,
    plan,
    prefetch,
    stored_models,
)
from pywebml.errors import (
    AbortError,
    DownloadError,
    FileNotFoundOnHubError,
    ModelLoadError,
    OptionsError,
    QuotaExceededError,
    StoreError,
    StoreUnavailableError,
    TokenizerError,
)
from pywebml.hub import Selection
from pywebml.options import configure
from pywebml.platform import BlobKey, BlobWriter
from pywebml.platform.native import NativePlatform
from pywebml.sources import model_hub, settings_client
from tests.faults.server import FaultServer
from tests.tiny_model import FILES, TinyModel

pytestmark = pytest.mark.usefixtures("surroundings")

MODEL, REVISION = "tests/tiny", "v1.0.0"
FOLDER = f"hub/{MODEL}/{REVISION}"
TINY: dict[str, Any] = {
    "task_name": "feature-extraction",
    "model_id": MODEL,
    "model_revision": REVISION,
    "dtype": "fp32",
}
WEIGHTS = f"*/{FILES['fp32']}"


def publish(server: FaultServer, **options: Any) -> dict[str, bytes]:
    model = TinyModel(**options)
    model.write(server.root / FOLDER)
    return model.files()


# Prefetch


async def test_prefetched_model_makes_an_engine_offline(server: FaultServer) -> None:
    publish(server)
    planned = await prefetch(**TINY)
    assert planned.missing > 0
    assert list_engines() == []
    assert await is_cached(**TINY)
    server.fault("*", "drop", method="*")
    server.forget()
    async with await create_engine(**TINY) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
    assert server.requests() == []
    assert (await prefetch(PipelineOptions(**TINY))).missing == 0


async def test_prefetch_is_noted_as_its_tasks_or_its_engines(server: FaultServer) -> None:
    publish(server)
    await prefetch(**TINY)
    stored = await stored_models()
    [model] = await stored.models()
    assert (model.task_names, model.engine_ids) == (("feature-extraction",), ())
    await prefetch(**TINY, engine_id="cats")
    [model] = await stored.models()
    assert (model.task_names, model.engine_ids) == (("feature-extraction",), ("cats",))
    # What was fetched for the task alone is the engine's from then on.
    await stored.delete(Selection(engine_id="cats"))
    assert await stored.models() == []


async def test_prefetch_takes_options_or_fields() -> None:
    with pytest.raises(OptionsError, match="not both"):
        await prefetch(PipelineOptions(**TINY), dtype="q8")


async def test_aborted_prefetch_stops_and_the_next_one_goes_on(server: FaultServer) -> None:
    files = publish(server)
    server.fault(WEIGHTS, "stall", 1000, times=1)
    controller = AbortController()
    events: list[ProgressEvent] = []

    def stop(event: ProgressEvent) -> None:
        events.append(event)
        if event.metadata["file"] == FILES["fp32"] and event.total_loaded >= 1000:
            controller.abort("Not now.")

    with pytest.raises(AbortError, match="Not now"):
        await prefetch(**TINY, on_progress=stop, signal=controller.signal)
    last = [event for event in events if event.type == "loading"][-1]
    assert (last.status_text, last.ok) == ("done", False)
    server.forget()
    planned = await prefetch(**TINY)
    assert {file.loaded for file in planned.files if file.file.purpose == "weights"} == {1000}
    assert [request.range for request in server.log(WEIGHTS)] == [f"bytes=1000-{len(files[FILES['fp32']]) - 1}"]


# The events of all files together


def check_totals(events: list[ProgressEvent], *, ok: bool = True) -> list[ProgressEvent]:
    """What holds for every sequence of `loading` events; returns them."""
    together = [event for event in events if event.type == "loading"]
    assert [event.status_text for event in together] == [
        "initiate",
        *["in_progress"] * (len(together) - 2),
        "done",
    ]
    assert all(event.units == "bytes" for event in together)
    for earlier, later in pairwise(together):
        assert earlier.total <= later.total
        assert earlier.total_loaded <= later.total_loaded
        assert later.total_loaded - earlier.total_loaded == later.current_loaded
    assert all(0 <= event.progress <= 100 for event in together)
    assert all(event.total_loaded <= event.total for event in together)
    assert all(event.ok for event in together[:-1])
    assert together[-1].ok is ok
    if ok:
        assert (together[-1].progress, together[-1].total_loaded) == (100.0, together[-1].total)
    return together


async def test_first_total_is_the_plans_and_the_last_is_reached(server: FaultServer) -> None:
    publish(server)
    total = (await plan(**TINY)).total
    events: list[ProgressEvent] = []
    async with await create_engine(**TINY, engine_id="cats", on_progress=events.append):
        pass
    together = check_totals(events)
    assert {event.total for event in together} == {total}
    assert {event.id for event in together} == {"cats"}
    assert together[0].metadata == {
        "engineId": "cats",
        "model": MODEL,
        "revision": REVISION,
        "file": None,
        "url": None,
        "taskName": "feature-extraction",
        "files": 4,
        "totalObjectsSeen": 1,
    }
    assert together[-1].metadata["totalObjectsSeen"] == 4
    # Everything of the files is told besides, as without these.
    assert {event.metadata["file"] for event in events if event.type != "loading"} == {
        *("config.json", "tokenizer.json", "tokenizer_config.json"),
        FILES["fp32"],
    }


async def test_stored_files_count_at_once(server: FaultServer) -> None:
    publish(server)
    await prefetch(**TINY)
    total = (await plan(**TINY)).total
    events: list[ProgressEvent] = []
    async with await create_engine(**TINY, on_progress=events.append):
        pass
    together = check_totals(events)
    assert together[0].total == total
    assert {event.type for event in events} == {"loading", "loading_from_cache"}


async def test_resumed_download_counts_what_is_there(server: FaultServer) -> None:
    publish(server)
    server.fault(WEIGHTS, "truncate", 1000, times=1)
    server.fault(WEIGHTS, "drop")
    events: list[ProgressEvent] = []
    with pytest.raises(DownloadError):
        await create_engine(**TINY, on_progress=events.append)
    failed = check_totals(events, ok=False)
    assert failed[-1].progress < 100
    server.mend()
    again: list[ProgressEvent] = []
    async with await create_engine(**TINY, on_progress=again.append):
        pass
    assert check_totals(again)[0].total == failed[0].total


async def test_size_that_nobody_told_makes_the_total_grow(server: FaultServer) -> None:
    files = publish(server, manifest=False)
    server.fault(WEIGHTS, "no_length", method="*")
    events: list[ProgressEvent] = []
    async with await create_engine(**TINY, on_progress=events.append):
        pass
    together = check_totals(events)
    assert together[-1].total - together[0].total == len(files[FILES["fp32"]])


async def test_plan_that_fails_has_no_events_of_all_files(server: FaultServer) -> None:
    events: list[ProgressEvent] = []
    with pytest.raises(Exception, match=r"config\.json"):
        await create_engine(**TINY, on_progress=events.append)
    assert [event.type for event in events if event.type == "loading"] == []
    assert (events[-1].status_text, events[-1].ok) == ("done", False)


# Damaged files


def stored_as(folder: Path, data: bytes) -> Path:
    [path] = [path for path in (folder / "cache" / "blobs").glob("*.bin") if path.read_bytes() == data]
    return path


Damage = Callable[[Path, bytes], object]
DAMAGES: dict[str, Damage] = {
    "cut off": lambda path, data: path.write_bytes(data[:-5]),
    "gone": lambda path, data: path.unlink(),
    "another size": lambda path, data: path.write_bytes(data + b"x"),
    "overwritten": lambda path, data: path.write_bytes(bytes(len(data))),
}


@pytest.mark.parametrize(
    ("damage", "path"),
    [
        *((damage, path) for damage in DAMAGES for path in (FILES["fp32"], "tokenizer.json")),
        # Of a config.json that was overwritten only `verify` knows that it is damaged: it is one of another model.
        *((damage, "config.json") for damage in ("cut off", "gone", "another size")),
    ],
)
async def test_engine_whose_stored_file_was_damaged_loads_anyway(
    server: FaultServer, tmp_path: Path, damage: str, path: str
) -> None:
    files = publish(server)
    await prefetch(**TINY)
    DAMAGES[damage](stored_as(tmp_path, files[path]), files[path])
    server.forget()
    events: list[ProgressEvent] = []
    async with await create_engine(**TINY, on_progress=events.append) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
    # One sequence, also when the damage shows only after everything was there.
    check_totals(events)
    assert server.requests() == [f"GET /{FOLDER}/{path}"]
    assert all(result.ok for result in await (await stored_models()).verify())


@pytest.mark.parametrize("damage", ["cut off", "gone"])
async def test_file_that_is_damaged_between_its_check_and_its_use_is_fetched_again(
    server: FaultServer, tmp_path: Path, damage: str
) -> None:
    files = publish(server)
    await prefetch(**TINY)
    server.forget()
    waiting = [stored_as(tmp_path, files[FILES["fp32"]])]

    def harm(event: ProgressEvent) -> None:
        if event.type == "loading" and event.status_text == "done" and waiting:
            DAMAGES[damage](waiting.pop(), files[FILES["fp32"]])

    async with await create_engine(**TINY, on_progress=harm) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
    assert server.requests() == [f"GET /{FOLDER}/{FILES['fp32']}"]


async def test_damaged_file_that_cannot_be_fetched_again_ends_the_events(server: FaultServer, tmp_path: Path) -> None:
    files = publish(server)
    await prefetch(**TINY)
    DAMAGES["overwritten"](stored_as(tmp_path, files["tokenizer.json"]), files["tokenizer.json"])
    server.fault("*/tokenizer.json", "status", 404, method="*")
    events: list[ProgressEvent] = []
    with pytest.raises(FileNotFoundOnHubError):
        await create_engine(**TINY, on_progress=events.append)
    together = [event.status_text for event in events if event.type == "loading"]
    assert (together.count("initiate"), together.count("done"), together[-1]) == (1, 1, "done")


@pytest.mark.parametrize("error", [QuotaExceededError, StoreUnavailableError])
async def test_error_that_says_nothing_about_stored_files_has_none_of_them_looked_at(
    server: FaultServer, platform: NativePlatform, monkeypatch: pytest.MonkeyPatch, error: type[StoreError]
) -> None:
    publish(server)
    looked_at: list[BlobKey] = []
    opened: list[str] = []
    open_writer = platform.blobs.open_writer

    async def verify(key: BlobKey) -> bool:
        looked_at.append(key)
        return True

    async def refuse(key: BlobKey, token: str = "") -> BlobWriter:
        opened.append(key.path)
        if key.path == FILES["fp32"]:
            raise error("Not today.")
        return await open_writer(key, token)

    monkeypatch.setattr(platform.blobs, "verify", verify)
    monkeypatch.setattr(platform.blobs, "open_writer", refuse)
    events: list[ProgressEvent] = []
    with pytest.raises(error, match="Not today"):
        await create_engine(**TINY, on_progress=events.append)
    check_totals(events, ok=False)
    assert looked_at == []
    assert opened.count(FILES["fp32"]) == 1


async def test_hub_that_is_gone_no_longer_listens_to_the_settings(
    server: FaultServer, platform: NativePlatform
) -> None:
    configuration = configure(settings_server=f"{server.url}/v1/")
    settings = settings_client(platform, configuration)
    assert settings is not None
    hub = model_hub(platform, configuration)
    assert len(settings._listeners) == 1
    del hub
    gc.collect()
    assert settings._listeners == []


async def test_model_that_is_broken_on_its_hub_is_not_fetched_twice(
    server: FaultServer, platform: NativePlatform
) -> None:
    publish(server, corrupt=True)
    events: list[ProgressEvent] = []
    with pytest.raises(ModelLoadError):
        await create_engine(**TINY, on_progress=events.append)
    check_totals(events)
    assert server.requests(WEIGHTS) == [f"GET /{FOLDER}/{FILES['fp32']}"]
    assert len(await platform.blobs.list("model")) == 5


async def test_tokenizer_that_is_broken_on_its_hub_is_not_fetched_twice(server: FaultServer) -> None:
    publish(server, manifest=False)
    server.write(f"{FOLDER}/tokenizer.json", "{}")
    with pytest.raises(TokenizerError):
        await create_engine(**TINY)
    assert server.requests("*/tokenizer.json").count(f"GET /{FOLDER}/tokenizer.json") == 1
