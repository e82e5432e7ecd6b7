"""What a page can call in the host worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pywebml import ProgressEvent, TaskContext, configure, list_engines, task, worker
from pywebml.errors import (
    EngineClosedError,
    FileNotFoundOnHubError,
    InputError,
    OptionsError,
    PywebmlError,
    SettingsError,
    TaskError,
)
from pywebml.platform.native import NativePlatform
from pywebml.prepare.mirror import MirrorCollection, write_mirror
from pywebml.tasks import task_names
from pywebml.worker import METHODS, call
from tests.faults.server import FaultServer
from tests.tiny_model import FILES, TinyModel, expected_hidden

pytestmark = pytest.mark.usefixtures("surroundings")

MODEL = "tests/tiny"
REVISION = "v1.0.0"
OPTIONS = {
    "taskName": "feature-extraction",
    "modelId": MODEL,
    "modelRevision": REVISION,
    "dtype": "fp32",
    "engineId": "one",
}


@dataclass
class RecordedCall:
    """A call from nobody that keeps what it is told."""

    events: list[ProgressEvent] = field(default_factory=list)
    chunks: list[Any] = field(default_factory=list)

    def progress(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def chunk(self, value: Any) -> None:
        self.chunks.append(value)


async def ask(method: str, **params: Any) -> Any:
    return await call(method, params, RecordedCall())


@pytest.fixture
def files(server: FaultServer) -> dict[str, bytes]:
    """The files of the model on the hub."""
    tiny = TinyModel()
    tiny.write(server.root / "hub" / MODEL / REVISION)
    return tiny.files()


def register_shout() -> None:
    @task("shout")
    async def shout(_context: TaskContext, text: str) -> str:
        return text.upper()


# Calls


@pytest.mark.parametrize("method", ["", "__class__", "createengine", "models"])
async def test_unknown_method_is_refused(method: str) -> None:
    with pytest.raises(OptionsError, match="no method"):
        await ask(method)


BAD_PARAMS: list[tuple[str, dict[str, Any]]] = [
    ("createEngine", {}),
    ("createEngine", {"options": None}),
    ("createEngine", {"options": "feature-extraction"}),
    ("createEngine", {"options": {"taskName": "feature-extraction", "modelID": "a/b"}}),
    ("run", {}),
    ("run", {"engineId": 5, "args": [], "options": {}}),
    ("run", {"engineId": "", "args": [], "options": {}}),
    ("run", {"engineId": "one", "options": {}}),
    ("run", {"engineId": "one", "args": "text", "options": {}}),
    ("run", {"engineId": "one", "args": [], "options": []}),
    ("runWithGenerator", {}),
    ("runWithGenerator", {"engineId": "one", "args": {}, "options": {}}),
    ("terminate", {}),
    ("models.files", {}),
    ("models.files", {"model": "../secrets"}),
    ("models.files", {"model": MODEL, "revision": ["main"]}),
    ("models.delete", {"model": None}),
    ("models.delete", {"model": MODEL, "revision": 5}),
    ("settings.get", {}),
    ("settings.get", {"collection": "../secrets"}),
    ("settings.sync", {"collection": 5}),
    ("registerTask", {"source": "x = 1"}),
    ("registerTask", {"name": "x"}),
    ("registerTask", {"name": "x", "source": 5}),
    ("registerTask", {"name": "x", "source": "x = 1", "url": "task.py"}),
    ("registerTask", {"name": "x", "url": 5}),
]


@pytest.mark.parametrize(("method", "params"), BAD_PARAMS)
async def test_wrong_parameters_are_named(server: FaultServer, method: str, params: dict[str, Any]) -> None:
    register_shout()
    await ask("createEngine", options={"taskName": "shout", "engineId": "one"})
    configure(settings_server=f"{server.url}/v1")
    assert method in METHODS
    with pytest.raises(OptionsError):
        await ask(method, **params)


# Engines


@pytest.mark.usefixtures("files")
async def test_engine_is_made_with_progress_and_described() -> None:
    caller = RecordedCall()
    made = await call("createEngine", {"options": OPTIONS}, caller)
    assert (made["engineId"], made["status"]) == ("one", "ready")
    assert made["options"] | OPTIONS == made["options"]
    assert any(event.metadata["file"] == FILES["fp32"] and event.status_text == "done" for event in caller.events)
    assert await ask("engines.list") == [made]
    json.dumps(made)


@pytest.mark.usefixtures("files")
async def test_run_gives_the_result_and_how_long_it_took() -> None:
    await ask("createEngine", options=OPTIONS)
    answer = await ask("run", engineId="one", args=["cat"], options={"pooling": "mean"})
    np.testing.assert_allclose(answer["result"], expected_hidden([["[CLS]", "cat", "[SEP]"]]).mean(axis=1), atol=1e-6)
    assert 0 < answer["metrics"]["inference"] < answer["metrics"]["total"]


@pytest.mark.usefixtures("files")
async def test_wrong_input_is_named_and_the_engine_goes_on() -> None:
    await ask("createEngine", options=OPTIONS)
    for args, options in (([], {}), ([5], {}), (["cat"], {"colour": "red"})):
        with pytest.raises(InputError):
            await ask("run", engineId="one", args=args, options=options)
    assert (await ask("run", engineId="one", args=["cat"], options={}))["result"].shape == (1, 3, 8)


async def test_failed_engine_is_not_listed() -> None:
    with pytest.raises(FileNotFoundOnHubError):
        await ask("createEngine", options=OPTIONS)
    assert await ask("engines.list") == []


async def test_terminate_ends_the_one_engine_and_passes_over_unknown_ones() -> None:
    register_shout()
    for engine_id in ("one", "two"):
        await ask("createEngine", options={"taskName": "shout", "engineId": engine_id})
    await ask("terminate", engineId="one")
    await ask("terminate", engineId="one")
    await ask("terminate", engineId="never")
    assert [engine["engineId"] for engine in await ask("engines.list")] == ["two"]
    with pytest.raises(EngineClosedError, match="'one'"):
        await ask("run", engineId="one", args=["x"], options={})
    with pytest.raises(EngineClosedError):
        await ask("runWithGenerator", engineId="one", args=["x"], options={})


async def test_pieces_of_a_stream_go_to_the_page_one_by_one() -> None:
    @task("spell")
    class Spell:
        def __init__(self, _context: TaskContext) -> None: ...

        async def run(self, word: str) -> str:
            return word

        async def stream(self, word: str, *, mark: str) -> AsyncIterator[str]:
            for letter in word:
                yield letter + mark

    await ask("createEngine", options={"taskName": "spell", "engineId": "one"})
    caller = RecordedCall()
    params = {"engineId": "one", "args": ["cat"], "options": {"mark": "!"}}
    assert await call("runWithGenerator", params, caller) is None
    assert caller.chunks == ["c!", "a!", "t!"]


async def test_task_that_does_not_stream_says_so() -> None:
    register_shout()
    await ask("createEngine", options={"taskName": "shout", "engineId": "one"})
    with pytest.raises(TaskError, match=r"run\(\)"):
        await ask("runWithGenerator", engineId="one", args=["x"], options={})


async def test_cancelled_call_stops_the_creation(server: FaultServer, files: dict[str, bytes]) -> None:
    path = f"/hub/{MODEL}/{REVISION}/{FILES['fp32']}"
    server.fault(path, "stall", 100)
    stalled = asyncio.Event()
    caller = RecordedCall()

    def progress(event: ProgressEvent) -> None:
        if event.metadata["file"] == FILES["fp32"] and event.total_loaded:
            stalled.set()

    caller.progress = progress  # type: ignore[method-assign]
    work = asyncio.ensure_future(call("createEngine", {"options": OPTIONS}, caller))
    await asyncio.wait_for(stalled.wait(), 20)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert list_engines() == []


# Stored models


async def test_stored_models_are_listed_with_their_files_and_deleted(files: dict[str, bytes]) -> None:
    assert await ask("models.list", selection={}) == []
    await ask("createEngine", options=OPTIONS)
    [model] = await ask("models.list", selection={})
    assert (model["model"], model["revision"], model["tasks"]) == (MODEL, REVISION, ["feature-extraction"])

    stored = await ask("models.files", selection={"model": MODEL})
    used = {path: len(data) for path, data in files.items() if path != FILES["q8"]}
    assert {file["path"]: file["size"] for file in stored} == used
    assert (model["files"], model["size"]) == (len(used), sum(used.values()))
    assert await ask("models.files", selection={"model": MODEL, "revision": REVISION}) == stored
    assert await ask("models.files", selection={"model": MODEL, "revision": "v2.0.0"}) == []
    usage = await ask("models.usage")
    assert usage["used"] == model["size"]
    assert usage["allowed"] >= usage["used"]
    json.dumps([model, stored, usage])

    assert await ask("models.delete", selection={"model": MODEL, "revision": "v2.0.0"}) == 0
    assert await ask("models.delete", selection={"model": MODEL}) == model["size"]
    assert await ask("models.list", selection={}) == []
    assert (await ask("models.usage"))["used"] == 0


# Settings


async def test_settings_are_synced_and_read(server: FaultServer, platform: NativePlatform) -> None:
    def write(timestamp: int, *names: str) -> None:
        write_mirror(
            server.root / "v1",
            [
                MirrorCollection(
                    "main", "ml-inference-options", timestamp, {name: {"featureId": name} for name in names}
                ),
                MirrorCollection("main", "ml-onnx-runtime", timestamp, {"runtime": {"name": "a.wasm"}}),
            ],
        )

    configure(settings_server=f"{server.url}/v1")
    write(1_760_000_000_000, "cats")
    assert [record["featureId"] for record in await ask("settings.get", collection="ml-inference-options")] == ["cats"]

    watcher = RecordedCall()
    watching = asyncio.ensure_future(call("settings.watch", {}, watcher))
    await asyncio.sleep(0)
    write(1_760_000_001_000, "cats", "dogs")
    result = await ask("settings.sync", collection="ml-inference-options")
    assert [record["featureId"] for record in result["created"]] == ["dogs"]
    assert result["deleted"] == []
    assert watcher.chunks == [{"collection": "ml-inference-options", **result}]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)

    write(1_760_000_002_000, "dogs")
    result = await ask("settings.sync")
    assert [record["featureId"] for record in result["deleted"]] == ["cats"]
    assert [record["name"] for record in result["created"]] == ["a.wasm"]
    json.dumps(result)
    assert len(watcher.chunks) == 1


@pytest.mark.parametrize("method", ["settings.get", "settings.sync", "settings.watch"])
async def test_without_a_settings_server_the_error_says_how_to_name_one(method: str) -> None:
    with pytest.raises(SettingsError, match="settingsServer"):
        await ask(method, collection="ml-inference-options")


# Tasks of the page

SHOUT = """
from __future__ import annotations
import pywebml

@pywebml.task("shout")
async def shout(context, text):
    return text.upper()
"""


async def test_task_is_registered_by_its_source_and_runs() -> None:
    names = await ask("registerTask", name="shout", source=SHOUT)
    assert names == task_names()
    assert "shout" in names
    await ask("createEngine", options={"taskName": "shout", "engineId": "one"})
    assert (await ask("run", engineId="one", args=["cat"], options={}))["result"] == "CAT"


async def test_task_is_registered_by_its_address(server: FaultServer) -> None:
    server.write("tasks/shout.py", SHOUT + "# 機械\n")
    assert "shout" in await ask("registerTask", name="shout", url=f"{server.url}/tasks/shout.py")


async def test_task_is_replaced_by_a_later_source() -> None:
    await ask("registerTask", name="shout", source=SHOUT)
    await ask("registerTask", name="shout", source=SHOUT.replace("upper", "title"))
    await ask("createEngine", options={"taskName": "shout", "engineId": "one"})
    assert (await ask("run", engineId="one", args=["cat"], options={}))["result"] == "Cat"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(", "SyntaxError"),
        ("\0", "null bytes"),
        ("import no_such_module", "no_such_module"),
        ("", "it registered: none"),
        (SHOUT.replace('"shout"', '"whisper"'), "it registered: whisper"),
        (SHOUT.replace("async def", "def"), "async function"),
    ],
)
async def test_source_that_does_not_make_the_task_is_refused_with_the_reason(source: str, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        await ask("registerTask", name="shout", source=source)
    assert "shout" not in task_names()


async def test_source_that_does_not_make_a_task_which_was_there_before_is_refused_too() -> None:
    await ask("registerTask", name="shout", source=SHOUT)
    with pytest.raises(TaskError, match="it registered: whisper"):
        await ask("registerTask", name="shout", source=SHOUT.replace('"shout"', '"whisper"'))


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [("status", 404, "404"), ("status", 500, "500"), ("drop", None, "could not be fetched")],
)
async def test_source_that_cannot_be_fetched_is_named(
    server: FaultServer, kind: str, value: int | None, words: str
) -> None:
    server.write("shout.py", SHOUT)
    server.fault("/shout.py", kind, value)
    with pytest.raises(TaskError, match=words) as caught:
        await ask("registerTask", name="shout", url=f"{server.url}/shout.py")
    assert caught.value.details["url"] == f"{server.url}/shout.py"


async def test_source_that_is_too_long_is_refused(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_TASK_SOURCE", 100)
    server.write("shout.py", SHOUT + "#" * 100)
    with pytest.raises(TaskError, match="100 bytes"):
        await ask("registerTask", name="shout", url=f"{server.url}/shout.py")


async def test_source_that_is_no_text_is_refused(server: FaultServer) -> None:
    server.write("shout.py", b"\xff\xfe\0\0")
    with pytest.raises(PywebmlError, match="UTF-8") as caught:
        await ask("registerTask", name="shout", url=f"{server.url}/shout.py")
    assert isinstance(caught.value, TaskError)
