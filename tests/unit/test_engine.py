"""Engines: how they are chosen, made, run, stopped and ended; natively, over real HTTP, with a tiny real model."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pywebml import (
    AbortController,
    Engine,
    PipelineOptions,
    ProgressEvent,
    TaskContext,
    configure,
    create_engine,
    get_engine,
    list_engines,
    options,
    pipeline,
    sources,
    task,
)
from pywebml.errors import (
    AbortError,
    AttachmentError,
    DownloadError,
    EngineClosedError,
    FileNotFoundOnHubError,
    InputError,
    IntegrityError,
    ModelLoadError,
    NoMatchingRecordError,
    OptionsError,
    PywebmlError,
    SettingsNetworkError,
    TaskError,
    UnknownTaskError,
)
from pywebml.options import Configuration
from pywebml.platform import BlobKey, set_platform
from pywebml.platform.native import NativePlatform
from pywebml.platform.native_sessions import NativeSession, NativeSessionWorker
from pywebml.prepare.mirror import Json, MirrorAttachment, MirrorCollection, write_mirror
from pywebml.sources import model_hub, settings_client
from tests.faults.server import FaultServer
from tests.tiny_model import FILES, FOREVER, TinyModel, expected_hidden

pytestmark = pytest.mark.usefixtures("surroundings")

MODEL = "tests/tiny"
REVISION = "v1.0.0"
TINY: dict[str, Any] = {
    "task_name": "feature-extraction",
    "model_id": MODEL,
    "model_revision": REVISION,
    "dtype": "fp32",
}
WEIGHTS = f"/hub/{MODEL}/{REVISION}/{FILES['fp32']}"
CAT = ["[CLS]", "cat", "[SEP]"]
RUNTIME_FILE = "ort-wasm-simd-threaded.wasm"
TIMESTAMP = 1_760_000_000_000


def publish(server: FaultServer, model: TinyModel, name: str = MODEL, revision: str = REVISION) -> None:
    model.write(server.root / "hub" / name / revision)


@pytest.fixture
def tiny(server: FaultServer) -> None:
    """The hub has `MODEL`, which the word `FOREVER` keeps computing."""
    publish(server, TinyModel(endless=True))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[NativeSession]:
    """Gets the session of every run that reaches the runtime."""
    reached: list[NativeSession] = []
    original = NativeSession.run

    async def run(self: NativeSession, *args: Any, **options: Any) -> Any:
        reached.append(self)
        return await original(self, *args, **options)

    monkeypatch.setattr(NativeSession, "run", run)
    return reached


async def until(condition: Callable[[], bool]) -> None:
    """Let everything else go on until `condition` holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0)


async def soon(work: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> Any:
    """What must end by itself."""
    return await asyncio.wait_for(work, 20)


async def past_idle_timers() -> None:
    """Timers of one millisecond that were set before have gone off, since the loop takes timers in their order."""
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.005, later.set)
    await later.wait()


def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    return asyncio.ensure_future(work)


def publish_settings(
    server: FaultServer, *records: dict[str, Json], version: str = "1.0.0", timestamp: int = TIMESTAMP
) -> None:
    """A settings server below `v1/` with these inference options and one runtime file."""
    runtime = server.root.parent / RUNTIME_FILE
    runtime.write_bytes(b"\0asm" + bytes(1000))
    write_mirror(
        server.root / "v1",
        [
            MirrorCollection(
                "main",
                "ml-inference-options",
                timestamp,
                {str(index): record for index, record in enumerate(records)},
            ),
            MirrorCollection(
                "main",
                "ml-onnx-runtime",
                timestamp,
                {"runtime": {"name": RUNTIME_FILE, "version": version}},
                {"runtime": MirrorAttachment(runtime, "application/wasm")},
            ),
        ],
    )
    configure(settings_server=f"{server.url}/v1")


class WatchedPlatform(NativePlatform):
    """Says like a browser that it needs a runtime file, and remembers what it was started with.

    With `stubborn`, runs that were given up never come to rest in time.
    """

    def __init__(self, cache_dir: Path, *, runtime_version: str = "1.0.0", stubborn: bool = False) -> None:
        super().__init__(cache_dir)
        self.environment = dataclasses.replace(
            self.environment, needs_runtime_file=True, runtime_version=runtime_version
        )
        self.stubborn = stubborn
        self.started: list[tuple[BlobKey | None, int]] = []
        self.workers: list[NativeSessionWorker] = []

    async def start_session_worker(self, runtime: BlobKey | None, *, num_threads: int) -> NativeSessionWorker:
        self.started.append((runtime, num_threads))
        worker = await super().start_session_worker(runtime, num_threads=num_threads)
        if self.stubborn:

            async def settle(seconds: float) -> bool:
                return False

            worker.settle = settle  # type: ignore[method-assign]
        self.workers.append(worker)
        return worker


# Options


async def test_defaults_fill_what_nobody_chose(server: FaultServer) -> None:
    publish(server, TinyModel(), revision="main")
    engine = await create_engine(task_name="feature-extraction", model_id=MODEL)
    assert engine.options.to_dict() == {
        "taskName": "feature-extraction",
        "modelId": MODEL,
        "modelRevision": "main",
        "dtype": "q8",
        "device": "wasm",
        "numThreads": 0,
        "backend": "onnx",
        "runtimeFilename": RUNTIME_FILE,
        "timeoutMS": -1,
    }
    np.testing.assert_allclose(await engine.run("cat"), expected_hidden([CAT], dtype="q8"), atol=1e-6)


@pytest.mark.usefixtures("tiny")
async def test_caller_stands_above_the_record_and_the_record_above_the_defaults(server: FaultServer) -> None:
    publish_settings(
        server,
        {
            "featureId": "cats",
            "taskName": "feature-extraction",
            "modelId": MODEL,
            "modelRevision": REVISION,
            "dtype": "q8",
            "numThreads": 1,
            "timeoutMS": 60_000,
        },
    )
    engine = await create_engine(feature_id="cats", dtype="fp32", timeout_ms=50_000)
    chosen = engine.options
    assert (chosen.task_name, chosen.model_id, chosen.model_revision) == ("feature-extraction", MODEL, REVISION)
    assert (chosen.num_threads, chosen.dtype, chosen.timeout_ms, chosen.device) == (1, "fp32", 50_000, "wasm")
    np.testing.assert_allclose(await engine.run("cat"), expected_hidden([CAT]), atol=1e-6)


@pytest.mark.usefixtures("tiny")
async def test_record_of_the_task_counts_when_no_feature_is_named(server: FaultServer) -> None:
    publish_settings(
        server, {"taskName": "feature-extraction", "modelId": MODEL, "modelRevision": REVISION, "dtype": "fp32"}
    )
    engine = await create_engine(task_name="feature-extraction")
    assert (engine.options.model_id, engine.options.dtype) == (MODEL, "fp32")


@pytest.mark.usefixtures("tiny")
async def test_record_of_another_model_does_not_count(server: FaultServer) -> None:
    publish_settings(server, {"taskName": "feature-extraction", "modelId": "tests/other", "dtype": "fp32"})
    engine = await create_engine(task_name="feature-extraction", model_id=MODEL, model_revision=REVISION)
    assert engine.options.dtype == "q8"


async def test_ambiguous_records_are_refused(server: FaultServer) -> None:
    record: dict[str, Json] = {"taskName": "feature-extraction", "modelId": MODEL}
    publish_settings(server, record, {**record, "featureId": "cats"})
    with pytest.raises(NoMatchingRecordError, match="2 records"):
        await create_engine(task_name="feature-extraction")


async def test_record_with_a_value_that_is_not_allowed_is_refused(server: FaultServer) -> None:
    publish_settings(server, {"taskName": "feature-extraction", "modelId": "../secrets"})
    with pytest.raises(OptionsError, match="secrets"):
        await create_engine(task_name="feature-extraction")


@pytest.mark.parametrize("fields", [{}, {"feature_id": "unknown"}], ids=["nothing", "unknown feature"])
async def test_no_task_is_refused(server: FaultServer, fields: dict[str, Any]) -> None:
    publish_settings(server)
    with pytest.raises(OptionsError, match="task_name"):
        await create_engine(**fields)
    assert list_engines() == []


async def test_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownTaskError, match="Did you mean 'feature-extraction'"):
        await create_engine(task_name="feature-extracton")


async def test_task_without_default_model_asks_for_one() -> None:
    @task("needs-a-model", modules=("model",))
    class NeedsModel:
        def __init__(self, context: TaskContext) -> None: ...

        async def run(self) -> None: ...

    with pytest.raises(OptionsError, match="model_id"):
        await create_engine(task_name="needs-a-model")


async def test_options_and_single_fields_are_not_mixed() -> None:
    with pytest.raises(OptionsError, match="not both"):
        await create_engine(PipelineOptions(task_name="feature-extraction"), dtype="fp32")


async def test_without_a_hub_the_error_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_configuration", Configuration())
    with pytest.raises(OptionsError, match="hub_root_url"):
        await create_engine(**TINY)
    assert list_engines() == []


@pytest.mark.usefixtures("tiny")
async def test_the_callers_hub_stands_above_the_configured_one(server: FaultServer) -> None:
    configure(hub_root_url=f"{server.url}/nowhere/")
    engine = await create_engine(
        **TINY, model_hub_root_url=f"{server.url}/", model_hub_url_template="hub/{model}/{revision}"
    )
    assert engine.status == "ready"


@pytest.mark.usefixtures("tiny")
async def test_tokenizer_can_come_from_another_model(server: FaultServer) -> None:
    publish(server, TinyModel(tokenizer_config={"model_max_length": 3}), "tests/short", "v2.0.0")
    engine = await create_engine(**TINY, tokenizer_id="tests/short", tokenizer_revision="v2.0.0")
    assert (await engine.run("cat cat cat")).shape == (1, 3, 8)


# Settings


@pytest.mark.usefixtures("tiny")
async def test_settings_server_that_is_away_fails_the_first_start_and_no_later_one(
    server: FaultServer, platform: NativePlatform
) -> None:
    publish_settings(server, {"featureId": "cats", **{"taskName": "feature-extraction", "modelId": MODEL}})
    server.fault("/v1/*", "drop")
    with pytest.raises(SettingsNetworkError, match="Check the connection"):
        await create_engine(feature_id="cats", model_revision=REVISION)
    assert list_engines() == []

    server.mend()
    await (await create_engine(feature_id="cats", model_revision=REVISION)).terminate()
    await asyncio.gather(*sources._revalidations)

    server.fault("/v1/*", "drop")
    engine = await create_engine(feature_id="cats", model_revision=REVISION)
    assert (await engine.run("cat")).shape == (1, 3, 8)


@pytest.mark.parametrize("kind", ["drop", "html", "status"])
@pytest.mark.usefixtures("tiny")
async def test_revalidation_in_the_background_never_raises(server: FaultServer, kind: str) -> None:
    publish_settings(server)
    await create_engine(**TINY)
    await asyncio.gather(*sources._revalidations)
    server.fault("/v1/*", kind, 500)
    await create_engine(**TINY, engine_id="second")
    assert len(sources._revalidations) == 1
    assert await asyncio.gather(*sources._revalidations) == [None]


@pytest.mark.usefixtures("tiny")
async def test_revalidation_brings_new_settings_for_the_next_start(server: FaultServer) -> None:
    record: dict[str, Json] = {"featureId": "cats", "taskName": "feature-extraction", "modelId": MODEL}
    publish_settings(server, {**record, "dtype": "q8"})
    first = await create_engine(feature_id="cats", model_revision=REVISION)
    await asyncio.gather(*sources._revalidations)

    publish_settings(server, {**record, "dtype": "fp32"}, timestamp=TIMESTAMP + 1000)
    second = await create_engine(feature_id="cats", model_revision=REVISION)
    await asyncio.gather(*sources._revalidations)
    third = await create_engine(feature_id="cats", model_revision=REVISION)
    assert [engine.options.dtype for engine in (first, second, third)] == ["q8", "q8", "fp32"]


@pytest.mark.usefixtures("tiny")
async def test_runtime_file_of_the_settings_starts_the_worker(server: FaultServer, tmp_path: Path) -> None:
    watched = WatchedPlatform(tmp_path / "other")
    set_platform(watched)
    publish_settings(server)
    engine = await create_engine(**TINY, num_threads=3)
    [(key, threads)] = watched.started
    assert key is not None
    assert (key.kind, key.path, threads) == ("attachment", RUNTIME_FILE, 3)
    assert (await watched.blobs.read(key))[:4] == b"\0asm"
    assert (await engine.run("cat")).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_runtime_of_another_version_is_never_started(server: FaultServer, tmp_path: Path) -> None:
    watched = WatchedPlatform(tmp_path / "other", runtime_version="2.0.0")
    set_platform(watched)
    publish_settings(server)
    with pytest.raises(NoMatchingRecordError, match=r"2\.0\.0"):
        await create_engine(**TINY)
    assert watched.started == []


@pytest.mark.usefixtures("tiny")
async def test_runtime_with_a_flipped_byte_is_never_started_or_stored(server: FaultServer, tmp_path: Path) -> None:
    watched = WatchedPlatform(tmp_path / "other")
    set_platform(watched)
    publish_settings(server)
    server.fault("/v1/attachments/*", "flip", 10)
    with pytest.raises(AttachmentError, match="SHA-256"):
        await create_engine(**TINY)
    assert watched.started == []
    assert await watched.blobs.list("attachment") == []
    server.mend()
    assert (await create_engine(**TINY)).status == "ready"


async def test_runtime_file_without_a_settings_server_is_asked_for(tmp_path: Path) -> None:
    set_platform(WatchedPlatform(tmp_path / "other"))
    with pytest.raises(OptionsError, match="settings_server"):
        await create_engine(**TINY)


# Making engines


@pytest.mark.usefixtures("tiny")
async def test_same_id_and_options_give_the_same_engine(server: FaultServer) -> None:
    first = await create_engine(**TINY, engine_id="one")
    server.forget()
    second = await create_engine(**TINY, engine_id="one", timeout_ms=60_000)
    assert second is first
    assert server.requests() == []
    assert list_engines() == [first]


@pytest.mark.usefixtures("tiny")
async def test_same_id_and_other_options_give_a_new_engine_in_its_place() -> None:
    first = await create_engine(**TINY, engine_id="one")
    second = await create_engine(**{**TINY, "dtype": "q8"}, engine_id="one")
    assert second is not first
    assert (first.status, second.status) == ("closed", "ready")
    assert list_engines() == [second]
    assert get_engine("one") is second
    np.testing.assert_allclose(await second.run("cat"), expected_hidden([CAT], dtype="q8"), atol=1e-6)


@pytest.mark.usefixtures("tiny")
async def test_same_id_wanted_twice_at_once_is_made_once() -> None:
    first, second = await asyncio.gather(*(create_engine(**TINY, engine_id="one") for _ in range(2)))
    assert first is second
    assert list_engines() == [first]


@pytest.mark.usefixtures("tiny")
async def test_same_id_wanted_at_once_with_other_options_leaves_one_engine() -> None:
    first, second = await asyncio.gather(
        create_engine(**TINY, engine_id="one"), create_engine(**{**TINY, "dtype": "q8"}, engine_id="one")
    )
    assert (first.status, second.status) == ("closed", "ready")
    assert list_engines() == [second]


@pytest.mark.usefixtures("tiny")
async def test_engines_without_id_get_one_that_is_free() -> None:
    first = await create_engine(**TINY)
    number = int(first.engine_id.removeprefix("engine-"))
    taken = await create_engine(**TINY, engine_id=f"engine-{number + 1}")
    second = await create_engine(**TINY)
    assert second.engine_id == f"engine-{number + 2}"
    assert list_engines() == [first, taken, second]


@pytest.mark.usefixtures("tiny")
async def test_two_engines_at_once_fetch_each_file_once(server: FaultServer) -> None:
    seen: tuple[list[ProgressEvent], list[ProgressEvent]] = ([], [])
    engines = await asyncio.gather(*(create_engine(**TINY, on_progress=events.append) for events in seen))
    paths = server.requests()
    assert sorted(paths) == sorted(set(paths))
    assert len(paths) == 5
    for engine, events in zip(engines, seen, strict=True):
        assert (await engine.run("cat")).shape == (1, 3, 8)
        assert any(event.metadata["file"] == FILES["fp32"] and event.progress == 100 for event in events)


async def test_a_new_revision_in_the_settings_brings_its_files_and_then_drops_the_old_ones(
    server: FaultServer, platform: NativePlatform
) -> None:
    async def revisions() -> list[str]:
        return [model.revision for model in await model_hub(platform).list_models()]

    def names(revision: str) -> dict[str, Json]:
        return {"featureId": "cats", "taskName": "feature-extraction", "modelId": MODEL, "modelRevision": revision}

    for revision in ("v1.0.0", "v2.0.0"):
        publish(server, TinyModel(), revision=revision)
    publish_settings(server, names("v1.0.0"))
    await (await create_engine(feature_id="cats", dtype="fp32")).terminate()
    assert await revisions() == ["v1.0.0"]

    settings = settings_client(platform)
    assert settings is not None
    publish_settings(server, names("v3.0.0"), timestamp=TIMESTAMP + 1000)
    await settings.sync("ml-inference-options")
    with pytest.raises(FileNotFoundOnHubError):
        await create_engine(feature_id="cats", dtype="fp32")
    assert await revisions() == ["v1.0.0"]

    publish_settings(server, names("v2.0.0"), timestamp=TIMESTAMP + 2000)
    await settings.sync("ml-inference-options")
    async with await create_engine(feature_id="cats", dtype="fp32"):
        assert await revisions() == ["v2.0.0"]


@pytest.mark.usefixtures("tiny")
async def test_two_engines_at_once_fetch_settings_and_runtime_once(server: FaultServer, tmp_path: Path) -> None:
    set_platform(WatchedPlatform(tmp_path / "other"))
    publish_settings(server)
    await asyncio.gather(*(create_engine(**TINY) for _ in range(2)))
    assert len(server.requests("/v1/attachments/*")) == 1
    assert len(server.requests("*/ml-onnx-runtime/changeset")) == 1
    assert len(server.requests("*/ml-inference-options/changeset")) == 1


@pytest.mark.usefixtures("tiny")
async def test_second_start_reads_the_store_only(server: FaultServer) -> None:
    await (await create_engine(**TINY)).terminate()
    server.forget()
    events: list[ProgressEvent] = []
    await create_engine(**TINY, on_progress=events.append)
    assert server.requests() == []
    assert {event.type for event in events} == {"loading_from_cache", "loading"}


async def test_external_data_is_fetched_and_loaded(server: FaultServer) -> None:
    publish(server, TinyModel(external_data=True))
    engine = await create_engine(**TINY)
    assert f"GET {WEIGHTS}_data" in server.requests()
    np.testing.assert_allclose(await engine.run("cat"), expected_hidden([CAT]), atol=1e-6)


async def test_the_callers_word_on_external_data_counts_more(server: FaultServer) -> None:
    publish(server, TinyModel(external_data=True, config={"transformers.js_config": None}))
    with pytest.raises(ModelLoadError):
        await create_engine(**TINY)
    assert (await create_engine(**TINY, use_external_data_format=1)).status == "ready"


async def test_model_that_fails_to_load_gives_its_worker_back(server: FaultServer, tmp_path: Path) -> None:
    publish(server, TinyModel(corrupt=True))
    publish_settings(server)
    watched = WatchedPlatform(tmp_path / "other")
    set_platform(watched)
    with pytest.raises(ModelLoadError):
        await create_engine(**TINY)
    assert [worker._open for worker in watched.workers] == [False]


async def test_corrupt_model_fails_its_own_engine(server: FaultServer, platform: NativePlatform) -> None:
    publish(server, TinyModel(), "tests/good")
    publish(server, TinyModel(corrupt=True))
    good = await create_engine(**{**TINY, "model_id": "tests/good"})
    with pytest.raises(ModelLoadError, match="ONNX Runtime says"):
        await create_engine(**TINY)
    assert list_engines() == [good]
    assert (await good.run("cat")).shape == (1, 3, 8)
    assert (await create_engine(**{**TINY, "model_id": "tests/good"})).status == "ready"


@pytest.mark.parametrize(
    ("kind", "amount", "error"),
    [
        ("truncate", 0, DownloadError),
        ("shorter", 100, IntegrityError),
        ("flip", 400, IntegrityError),
        ("html", None, IntegrityError),
        ("status", 404, FileNotFoundOnHubError),
        ("status", 503, DownloadError),
    ],
)
@pytest.mark.usefixtures("tiny")
async def test_failed_download_leaves_nothing_and_the_next_try_works(
    server: FaultServer, platform: NativePlatform, kind: str, amount: int | None, error: type[PywebmlError]
) -> None:
    server.fault(WEIGHTS, kind, amount)
    with pytest.raises(error, match=r"model\.onnx"):
        await create_engine(**TINY, engine_id="one")
    assert list_engines() == []
    assert FILES["fp32"] not in [info.key.path for info in await platform.blobs.list("model")]
    server.mend()
    assert (await (await create_engine(**TINY, engine_id="one")).run("cat")).shape == (1, 3, 8)


# Runs


@pytest.mark.usefixtures("tiny")
async def test_metrics_tell_how_long_the_latest_run_took() -> None:
    engine = await create_engine(**TINY)
    latest = [engine.metrics]
    for text in ("cat", "the cat"):
        await engine.run(text)
        latest.append(engine.metrics)
    before, first, second = latest
    assert before is None
    assert first is not None
    assert second is not None
    assert second is not first
    assert all(0 < metrics.inference < metrics.total for metrics in (first, second))


@pytest.mark.parametrize(
    ("args", "fields"),
    [
        ((), {}),
        (("cat", "mat"), {}),
        (("cat",), {"colour": "red"}),
        ((5,), {}),
        (([],), {}),
        ((["cat", None],), {}),
        (("cat",), {"pooling": "max"}),
        (("cat",), {"pooling": ["mean"]}),
        (("cat",), {"pooling": "mean", "batch_size": 0}),
        (("cat",), {"pooling": "mean", "batch_size": "8"}),
        (("cat",), {"quantize": True}),
        (("cat",), {"pooling": "mean", "quantize": True, "precision": "ternary"}),
        (("cat",), {"pooling": "mean", "quantize": True, "precision": ["binary"]}),
    ],
)
@pytest.mark.usefixtures("tiny")
async def test_wrong_arguments_are_named_and_the_engine_goes_on(args: tuple[Any, ...], fields: dict[str, Any]) -> None:
    engine = await create_engine(**TINY)
    with pytest.raises(InputError):
        await engine.run(*args, **fields)
    assert (await engine.run("cat")).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_runs_at_once_do_not_mix() -> None:
    engine = await create_engine(**TINY)
    rows = [["[CLS]", *["cat"] * count, "[SEP]"] for count in range(1, 9)]
    results = await asyncio.gather(*(engine.run(" ".join(row[1:-1])) for row in rows))
    for row, result in zip(rows, results, strict=True):
        np.testing.assert_allclose(result, expected_hidden([row]), atol=1e-6)


async def test_failing_task_leaves_the_engine_usable() -> None:
    @task("fragile")
    async def fragile(_context: TaskContext, number: int) -> float:
        return 1 / number

    engine = await create_engine(task_name="fragile")
    with pytest.raises(ZeroDivisionError):
        await engine.run(0)
    assert await engine.run(4) == 0.25
    assert engine.status == "ready"


async def test_task_as_a_function_needs_no_model_and_no_network(server: FaultServer) -> None:
    @task("shout")
    async def shout(context: TaskContext, text: str, *, mark: str = "!") -> str:
        assert (context.config, context.tokenizer, context.sessions) == (None, None, {})
        return text.upper() + mark

    engine = await create_engine(task_name="shout")
    assert await engine.run("cat", mark="?") == "CAT?"
    assert engine.metrics is not None
    assert engine.metrics.inference == 0
    assert server.requests() == []


async def test_task_as_a_class_is_built_once_per_engine() -> None:
    @task("count")
    class Count:
        def __init__(self, _context: TaskContext) -> None:
            self.runs = 0

        async def run(self) -> int:
            self.runs += 1
            return self.runs

    one, two = await create_engine(task_name="count"), await create_engine(task_name="count")
    assert [await one.run(), await one.run(), await two.run()] == [1, 2, 1]


@pytest.mark.parametrize("call", [((), {}), (("a", "b"), {}), (("a",), {"colour": "red"})])
async def test_wrong_arguments_of_a_function_task_are_named_too(call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    @task("shout")
    async def shout(_context: TaskContext, text: str) -> str:
        return text.upper()

    engine = await create_engine(task_name="shout")
    with pytest.raises(InputError, match="does not fit"):
        await engine.run(*call[0], **call[1])


@pytest.mark.usefixtures("tiny")
async def test_task_with_a_model_gets_its_session_and_config(server: FaultServer) -> None:
    @task("raw", modules=("model",))
    class Raw:
        def __init__(self, context: TaskContext) -> None:
            self.context = context

        async def run(self) -> list[str]:
            assert self.context.config is not None
            assert self.context.tokenizer is None
            return [self.context.config.model_type, *(info.name for info in self.context.sessions["model"].outputs)]

    engine = await create_engine(**{**TINY, "task_name": "raw"})
    assert await engine.run() == ["bert", "last_hidden_state"]
    assert not any("tokenizer" in request for request in server.requests())


# The end


@pytest.mark.usefixtures("tiny")
async def test_terminated_engine_says_so_and_leaves_the_list() -> None:
    engine = await create_engine(**TINY, engine_id="one")
    other = await create_engine(**TINY)
    await engine.terminate()
    await engine.terminate()
    assert engine.status == "closed"
    assert list_engines() == [other]
    with pytest.raises(EngineClosedError, match="create a new one"):
        await engine.run("cat")
    with pytest.raises(EngineClosedError, match="'one'"):
        get_engine("one")
    assert (await other.run("cat")).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_leaving_async_with_ends_the_engine() -> None:
    engine = await create_engine(**TINY)
    with pytest.raises(KeyError):
        async with engine:
            raise KeyError
    assert engine.status == "closed"
    assert list_engines() == []


@pytest.mark.usefixtures("tiny")
async def test_terminate_ends_runs_that_are_under_way_and_waiting(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY)
    tasks = [start(engine.run(FOREVER)), start(engine.run("cat"))]
    await until(lambda: len(runs) == 2)
    await engine.terminate()
    for work in tasks:
        with pytest.raises(EngineClosedError):
            await soon(work)
    # The idle timer and whatever else ends with a run must not bring it back.
    assert engine.status == "closed"
    assert list_engines() == []


@pytest.mark.usefixtures("tiny")
async def test_terminate_during_a_run_gives_the_thread_back(runs: list[NativeSession]) -> None:
    first = await create_engine(**TINY)
    work = start(first.run(FOREVER))
    await until(lambda: len(runs) == 1)
    await first.terminate()
    with pytest.raises(EngineClosedError):
        await soon(work)
    second = await create_engine(**TINY)
    assert (await soon(second.run("cat"))).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_engine_terminated_while_it_loads_is_not_handed_out(server: FaultServer) -> None:
    server.fault(WEIGHTS, "stall", 100)
    work = start(create_engine(**TINY, engine_id="one"))
    await until(lambda: f"GET {WEIGHTS}" in server.requests())
    await get_engine("one").terminate()
    assert list_engines() == []
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(work)
    server.mend()


async def test_engine_terminated_while_its_task_loads_raises_and_frees_the_worker(
    server: FaultServer, tmp_path: Path
) -> None:
    publish(server, TinyModel())
    publish_settings(server)
    watched = WatchedPlatform(tmp_path / "other")
    set_platform(watched)

    @task("late", modules=("model",))
    class Late:
        def __init__(self, _context: TaskContext) -> None:
            # Everything is loaded, and the engine is not ready yet. It ends in one step, so that no loop is needed.
            with pytest.raises(StopIteration):
                get_engine("one").terminate().send(None)

        async def run(self) -> None: ...

    with pytest.raises(EngineClosedError):
        await soon(create_engine(**{**TINY, "task_name": "late"}, engine_id="one"))
    assert [worker._open for worker in watched.workers] == [False]
    assert list_engines() == []


@pytest.mark.usefixtures("tiny")
async def test_idle_engine_ends_itself() -> None:
    engine = await create_engine(**TINY, timeout_ms=1)
    await until(lambda: engine.status == "closed")
    assert list_engines() == []


@pytest.mark.usefixtures("tiny")
async def test_engine_is_not_idle_while_it_runs_and_is_after_it(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY, timeout_ms=1)
    controller = AbortController()
    work = start(engine.run(FOREVER, signal=controller.signal))
    await until(lambda: len(runs) == 1)
    await past_idle_timers()
    assert engine.status == "ready"
    controller.abort()
    with pytest.raises(AbortError):
        await soon(work)
    await until(lambda: engine.status == "closed")


@pytest.mark.usefixtures("tiny")
async def test_engine_is_not_idle_when_one_of_its_runs_has_ended(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY, timeout_ms=1)
    work = start(engine.run(FOREVER))
    await until(lambda: len(runs) == 1)
    with pytest.raises(InputError):
        await engine.run(5)
    await past_idle_timers()
    assert engine.status == "ready"
    await engine.terminate()
    with pytest.raises(EngineClosedError):
        await soon(work)


@pytest.mark.usefixtures("tiny")
async def test_engine_that_waits_for_a_run_given_up_is_not_idle(server: FaultServer, tmp_path: Path) -> None:
    watched = WatchedPlatform(tmp_path / "other")
    set_platform(watched)
    publish_settings(server)
    engine = await create_engine(**TINY, timeout_ms=1)
    settling: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def settle(seconds: float) -> bool:
        return await settling

    watched.workers[0].settle = settle  # type: ignore[method-assign]
    given_up = start(engine.run("cat"))
    await until(lambda: engine._runs == 1)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(given_up)
    work = start(engine.run("cat"))
    await past_idle_timers()
    assert engine.status == "ready"
    settling.set_result(True)
    assert (await soon(work)).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_engine_that_is_handed_out_again_has_its_whole_time_again() -> None:
    engine = await create_engine(**TINY, engine_id="one", timeout_ms=3_600_000)
    before = engine._idle_timer
    assert await create_engine(**TINY, engine_id="one") is engine
    assert before is not None
    assert engine._idle_timer is not None
    assert before.cancelled()
    assert engine._idle_timer.when() > before.when()


@pytest.mark.usefixtures("tiny")
async def test_engine_without_timeout_has_no_timer() -> None:
    engine = await create_engine(**TINY)
    await engine.run("cat")
    assert engine._idle_timer is None


# Abort


async def test_aborted_signal_stops_before_anything_happens(server: FaultServer) -> None:
    controller = AbortController()
    controller.abort("No longer wanted.")
    with pytest.raises(AbortError, match="No longer wanted"):
        await create_engine(**TINY, signal=controller.signal)
    assert server.requests() == []
    assert list_engines() == []


@pytest.mark.usefixtures("tiny")
async def test_abort_during_loading_leaves_nothing_half_written(
    server: FaultServer, platform: NativePlatform, tmp_path: Path
) -> None:
    server.fault(WEIGHTS, "stall", 100)
    controller = AbortController()

    def abort_in_the_middle(event: ProgressEvent) -> None:
        if event.metadata["file"] == FILES["fp32"] and event.total_loaded:
            controller.abort()

    with pytest.raises(AbortError):
        await soon(create_engine(**TINY, engine_id="one", signal=controller.signal, on_progress=abort_in_the_middle))
    assert list_engines() == []
    stored = await platform.blobs.list("model")
    assert FILES["fp32"] not in [info.key.path for info in stored]
    used = (await platform.blobs.usage()).files
    assert used == sum(info.size for info in stored)

    server.mend()
    engine = await create_engine(**TINY, engine_id="one")
    assert (await engine.run("cat")).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_abort_of_one_loading_leaves_the_other_alone(server: FaultServer) -> None:
    controller = AbortController()

    def abort_in_the_middle(event: ProgressEvent) -> None:
        if event.metadata["file"] == FILES["fp32"] and event.total_loaded:
            controller.abort()

    given_up, wanted = await asyncio.gather(
        create_engine(**TINY, signal=controller.signal, on_progress=abort_in_the_middle),
        create_engine(**TINY),
        return_exceptions=True,
    )
    assert isinstance(given_up, AbortError)
    assert isinstance(wanted, Engine)
    assert list_engines() == [wanted]
    assert server.requests(WEIGHTS) == [f"GET {WEIGHTS}"]
    assert (await wanted.run("cat")).shape == (1, 3, 8)


@pytest.mark.usefixtures("tiny")
async def test_aborted_run_ends_at_once_and_the_next_one_works(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY)
    controller = AbortController()
    work = start(engine.run(FOREVER, signal=controller.signal))
    await until(lambda: len(runs) == 1)
    controller.abort("Enough.")
    with pytest.raises(AbortError, match=r"Enough\."):
        await soon(work)
    np.testing.assert_allclose(await soon(engine.run("cat")), expected_hidden([CAT]), atol=1e-6)


@pytest.mark.usefixtures("tiny")
async def test_run_with_an_aborted_signal_does_not_start(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY)
    controller = AbortController()
    controller.abort()
    with pytest.raises(AbortError):
        await engine.run("cat", signal=controller.signal)
    assert runs == []


@pytest.mark.usefixtures("tiny")
async def test_abort_of_one_run_leaves_those_beside_it_alone(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY)
    controller = AbortController()
    given_up = start(engine.run(FOREVER, signal=controller.signal))
    others = [start(engine.run("cat")) for _ in range(3)]
    await until(lambda: len(runs) == 4)
    controller.abort()
    with pytest.raises(AbortError):
        await soon(given_up)
    for work in others:
        np.testing.assert_allclose(await soon(work), expected_hidden([CAT]), atol=1e-6)
    assert len({id(session) for session in runs}) == 1


@pytest.mark.usefixtures("tiny")
async def test_run_that_does_not_stop_is_ended_with_its_worker_and_the_model_loaded_anew(
    server: FaultServer, tmp_path: Path, runs: list[NativeSession]
) -> None:
    watched = WatchedPlatform(tmp_path / "other", stubborn=True)
    set_platform(watched)
    publish_settings(server)
    engine = await create_engine(**TINY)
    await asyncio.gather(*sources._revalidations)
    server.forget()
    controller = AbortController()
    work = start(engine.run(FOREVER, signal=controller.signal))
    await until(lambda: len(runs) == 1)
    controller.abort()
    with pytest.raises(AbortError):
        await soon(work)
    first, second = start(engine.run("cat")), start(engine.run("the cat"))
    np.testing.assert_allclose(await soon(first), expected_hidden([CAT]), atol=1e-6)
    assert (await soon(second)).shape == (1, 4, 8)
    assert [worker._open for worker in watched.workers] == [False, True]
    assert server.requests() == []
    assert get_engine(engine.engine_id) is engine


@pytest.mark.usefixtures("tiny")
async def test_cancelled_caller_stops_the_run_too(runs: list[NativeSession]) -> None:
    engine = await create_engine(**TINY)
    work = start(engine.run(FOREVER))
    await until(lambda: len(runs) == 1)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(work)
    assert (await soon(engine.run("cat"))).shape == (1, 3, 8)


# Streams


def streaming_task() -> list[str]:
    """Register `spell`, which gives a word letter by letter and then waits; returns what happened in it."""
    happened: list[str] = []

    @task("spell")
    class Spell:
        def __init__(self, _context: TaskContext) -> None: ...

        async def run(self, word: str) -> str:
            return word

        async def stream(self, word: str, *, wait: bool = False) -> AsyncIterator[str]:
            try:
                for letter in word:
                    yield letter
                if wait:
                    await asyncio.Event().wait()
            finally:
                happened.append("closed")

    return happened


async def spell(engine: Engine, *args: Any, **fields: Any) -> list[Any]:
    return [piece async for piece in engine.run_with_generator(*args, **fields)]


async def test_stream_gives_its_pieces_one_by_one() -> None:
    happened = streaming_task()
    engine = await create_engine(task_name="spell")
    assert await spell(engine, "cat") == ["c", "a", "t"]
    assert happened == ["closed"]


async def test_stream_that_is_left_early_is_closed() -> None:
    happened = streaming_task()
    engine = await create_engine(task_name="spell")
    pieces = engine.run_with_generator("cat")
    assert await anext(pieces) == "c"
    await pieces.aclose()  # type: ignore[attr-defined]
    assert happened == ["closed"]


async def test_abort_between_pieces_ends_the_stream() -> None:
    happened = streaming_task()
    engine = await create_engine(task_name="spell")
    controller = AbortController()
    pieces = engine.run_with_generator("cat", signal=controller.signal)
    assert await anext(pieces) == "c"
    controller.abort("Enough.")
    with pytest.raises(AbortError, match="Enough"):
        await anext(pieces)
    assert happened == ["closed"]
    assert await spell(engine, "mat") == ["m", "a", "t"]


async def test_abort_while_a_piece_is_made_ends_the_stream_at_once() -> None:
    happened = streaming_task()
    engine = await create_engine(task_name="spell")
    controller = AbortController()
    seen: list[str] = []

    async def follow() -> None:
        async for piece in engine.run_with_generator("cat", wait=True, signal=controller.signal):
            seen.append(piece)  # noqa: PERF401 (what came before the abort counts)

    work = start(follow())
    await until(lambda: len(seen) == 3)
    controller.abort()
    with pytest.raises(AbortError):
        await soon(work)
    assert (seen, happened) == (["c", "a", "t"], ["closed"])


async def test_terminate_between_pieces_ends_the_stream() -> None:
    happened = streaming_task()
    engine = await create_engine(task_name="spell")
    pieces = engine.run_with_generator("cat")
    assert await anext(pieces) == "c"
    await engine.terminate()
    with pytest.raises(EngineClosedError):
        await anext(pieces)
    assert happened == ["closed"]


async def test_engine_is_not_idle_while_it_streams_and_is_after_it() -> None:
    streaming_task()
    engine = await create_engine(task_name="spell", timeout_ms=1)
    pieces = engine.run_with_generator("cat")
    assert await anext(pieces) == "c"
    await past_idle_timers()
    assert engine.status == "ready"
    assert [piece async for piece in pieces] == ["a", "t"]
    await until(lambda: engine.status == "closed")


async def test_wrong_arguments_of_a_stream_are_named() -> None:
    streaming_task()
    engine = await create_engine(task_name="spell")
    with pytest.raises(InputError, match="does not fit"):
        await spell(engine, "cat", colour="red")


@pytest.mark.usefixtures("tiny")
async def test_terminate_while_a_stream_is_in_the_runtime_says_that_the_engine_was_closed(
    runs: list[NativeSession],
) -> None:
    @task("stream-forever", modules=("model",), tokenizer=True)
    class Forever:
        def __init__(self, context: TaskContext) -> None:
            self.context = context

        async def run(self) -> None: ...

        async def stream(self, text: str) -> AsyncIterator[Any]:
            assert self.context.tokenizer is not None
            yield await self.context.sessions["model"].run(self.context.tokenizer(text))

    engine = await create_engine(**{**TINY, "task_name": "stream-forever"})
    work = start(spell(engine, FOREVER))
    await until(lambda: len(runs) == 1)
    await engine.terminate()
    with pytest.raises(EngineClosedError):
        await soon(work)


@pytest.mark.usefixtures("tiny")
async def test_task_that_does_not_stream_says_so() -> None:
    engine = await create_engine(**TINY)
    with pytest.raises(TaskError, match=r"call run\(\)"):
        await spell(engine, "cat")
    await engine.terminate()
    with pytest.raises(EngineClosedError):
        await spell(engine, "cat")


# pipeline


@pytest.mark.usefixtures("tiny")
async def test_pipeline_is_called_like_a_function() -> None:
    events: list[ProgressEvent] = []
    extractor = await pipeline(
        "feature-extraction", model=MODEL, revision=REVISION, dtype="fp32", on_progress=events.append
    )
    assert events
    async with extractor:
        np.testing.assert_allclose(await extractor("cat"), expected_hidden([CAT]), atol=1e-6)
        assert (await extractor(["cat", "the cat"], pooling="mean")).shape == (2, 8)
        controller = AbortController()
        controller.abort()
        with pytest.raises(AbortError):
            await extractor("cat", signal=controller.signal)
    with pytest.raises(EngineClosedError):
        await extractor("cat")
    assert list_engines() == []
