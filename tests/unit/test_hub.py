"""The model hub over real HTTP: what is requested, what is stored, and what happens when something breaks."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from pywebml.errors import DownloadError, FileNotFoundOnHubError, HubError, IntegrityError, OptionsError
from pywebml.hub import ModelHub
from pywebml.hub.addresses import Listing
from pywebml.platform import Platform
from pywebml.progress import ProgressEvent
from tests.faults.server import FaultServer

MODEL = "org/name"
CONFIG = '{"model_type": "bert"}'
WEIGHTS = bytes(range(256)) * 2000


def publish(server: FaultServer, files: dict[str, bytes | str], revision: str = "main", model: str = MODEL) -> None:
    for path, data in files.items():
        server.write(f"{model}/{revision}/{path}", data)


def publish_manifest(server: FaultServer, files: dict[str, bytes], revision: str = "main") -> None:
    entries = {path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()}
    publish(server, {**files, "manifest.json": json.dumps({"files": entries})}, revision)


@pytest.fixture
def hub(platform: Platform, server: FaultServer) -> ModelHub:
    return ModelHub(platform, server.url, listing="none")


@pytest.fixture
def manifest_hub(platform: Platform, server: FaultServer) -> ModelHub:
    return ModelHub(platform, server.url)


def again(platform: Platform, server: FaultServer, *, listing: Listing = "none") -> ModelHub:
    """The hub at the next visit."""
    return ModelHub(platform, server.url, listing=listing)


async def stored(platform: Platform) -> list[str]:
    return [info.key.path for info in await platform.blobs.list("model")]


# Into the store


async def test_file_is_downloaded_with_firefoxs_events(hub: ModelHub, server: FaultServer, platform: Platform) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS}, "v1.0.0")
    events: list[ProgressEvent] = []
    key = await hub.get_file(
        MODEL,
        "v1.0.0",
        "onnx/model.onnx",
        task_name="feature-extraction",
        engine_id="engine-1",
        on_progress=events.append,
    )
    assert await platform.blobs.read(key) == WEIGHTS
    statuses = [event.status_text for event in events]
    assert statuses[:2] == ["initiate", "size_estimate"]
    assert statuses[-1] == "done"
    assert set(statuses[2:-1]) <= {"in_progress"}
    assert {event.type for event in events} == {"downloading"}
    assert sum(event.current_loaded for event in events) == len(WEIGHTS)
    assert (events[1].total, events[-1].progress, events[-1].ok) == (len(WEIGHTS), 100.0, True)
    url = f"{server.url}/org/name/v1.0.0/onnx/model.onnx"
    assert all(event.id == url for event in events)
    assert events[0].metadata == {
        "model": MODEL,
        "revision": "v1.0.0",
        "file": "onnx/model.onnx",
        "url": url,
        "taskName": "feature-extraction",
        "engineId": "engine-1",
    }
    info = await platform.blobs.info(key)
    assert info is not None
    assert info.metadata["url"] == url
    assert info.metadata["etag"].startswith('"')
    assert info.metadata["uses"] == [["feature-extraction", None]]


@pytest.mark.parametrize("revision", ["v1.0.0", "0123456789abcdef0123456789abcdef01234567"])
async def test_second_visit_to_a_pinned_revision_makes_no_request(
    platform: Platform, server: FaultServer, hub: ModelHub, revision: str
) -> None:
    publish(server, {"config.json": CONFIG}, revision)
    await hub.get_file(MODEL, revision, "config.json")
    assert await hub.get_file(MODEL, revision, "absent.json", required=False) is None
    server.forget()
    events: list[ProgressEvent] = []
    later = again(platform, server)
    await later.get_file(MODEL, revision, "config.json", on_progress=events.append)
    assert await later.get_file(MODEL, revision, "absent.json", required=False) is None
    assert server.requests() == []
    assert [(event.type, event.status_text) for event in events] == [
        ("loading_from_cache", "initiate"),
        ("loading_from_cache", "done"),
    ]
    assert (events[-1].total, events[-1].progress) == (len(CONFIG), 100.0)


async def test_second_visit_with_a_manifest_makes_no_request(platform: Platform, server: FaultServer) -> None:
    publish_manifest(server, {"config.json": CONFIG.encode()}, "v1.0.0")
    for _ in range(2):
        later = again(platform, server, listing="manifest")
        await later.get_file(MODEL, "v1.0.0", "config.json")
        assert await later.get_file(MODEL, "v1.0.0", "generation_config.json", required=False) is None
        if server.requests():
            assert server.requests() == [
                "GET /org/name/v1.0.0/manifest.json",
                "GET /org/name/v1.0.0/config.json",
            ]
            server.forget()
            continue
        assert server.requests() == []


async def test_branch_is_compared_by_etag(platform: Platform, server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"config.json": CONFIG})
    key = await hub.get_file(MODEL, "main", "config.json")
    server.forget()
    await hub.get_file(MODEL, "main", "config.json")
    assert server.requests() == ["HEAD /org/name/main/config.json"]
    publish(server, {"config.json": '{"model_type": "new"}'})
    await hub.get_file(MODEL, "main", "config.json")
    assert await platform.blobs.read(key) == b'{"model_type": "new"}'
    assert server.requests()[1:] == ["HEAD /org/name/main/config.json", "GET /org/name/main/config.json"]


async def test_branch_with_a_manifest_is_compared_by_hash(platform: Platform, server: FaultServer) -> None:
    publish_manifest(server, {"a.json": b"{}", "b.json": b"{1}"})
    first = again(platform, server, listing="manifest")
    for path in ("a.json", "b.json"):
        await first.get_file(MODEL, "main", path)
    server.forget()
    publish_manifest(server, {"a.json": b"{}", "b.json": b"{2}"})
    later = again(platform, server, listing="manifest")
    for path in ("a.json", "b.json"):
        await later.get_file(MODEL, "main", path)
    assert server.requests() == [
        "HEAD /org/name/main/manifest.json",
        "GET /org/name/main/manifest.json",
        "GET /org/name/main/b.json",
    ]
    assert await later.read_file(MODEL, "main", "b.json") == b"{2}"


@pytest.mark.parametrize("kind", ["drop", "status"])
async def test_branch_is_read_from_the_store_when_the_hub_does_not_answer(
    server: FaultServer, hub: ModelHub, kind: str
) -> None:
    publish(server, {"config.json": CONFIG})
    await hub.get_file(MODEL, "main", "config.json")
    server.fault("*", kind, 503 if kind == "status" else 0, method="HEAD")
    assert await hub.read_file(MODEL, "main", "config.json") == CONFIG.encode()


async def test_update_that_broke_off_leaves_a_branch_with_a_manifest_usable_offline(
    platform: Platform, server: FaultServer
) -> None:
    publish_manifest(server, {"config.json": CONFIG.encode(), "onnx/model.onnx": WEIGHTS})
    first = again(platform, server, listing="manifest")
    for path in ("config.json", "onnx/model.onnx"):
        await first.get_file(MODEL, "main", path)
    publish_manifest(server, {"config.json": b"{}", "onnx/model.onnx": WEIGHTS[::-1]})
    server.fault("*.onnx", "status", 500)
    with pytest.raises(DownloadError, match="500"):
        await again(platform, server, listing="manifest").get_file(MODEL, "main", "onnx/model.onnx")

    server.fault("*", "drop", method="*")
    server.forget()
    offline = again(platform, server, listing="manifest")
    assert (await offline.file_status(MODEL, "main", "onnx/model.onnx")).stored
    assert await offline.read_file(MODEL, "main", "onnx/model.onnx") == WEIGHTS
    # What is not there at all cannot be had.
    with pytest.raises(FileNotFoundOnHubError):
        await offline.get_file(MODEL, "main", "tokenizer.json")

    server.mend()
    later = again(platform, server, listing="manifest")
    assert not (await later.file_status(MODEL, "main", "onnx/model.onnx")).stored
    assert await later.read_file(MODEL, "main", "onnx/model.onnx") == WEIGHTS[::-1]


async def test_optional_file_that_was_absent_stays_so_offline(
    platform: Platform, server: FaultServer, hub: ModelHub
) -> None:
    assert await hub.get_file(MODEL, "main", "generation_config.json", required=False) is None
    server.fault("*", "drop")
    assert await again(platform, server).get_file(MODEL, "main", "generation_config.json", required=False) is None
    server.mend()
    publish(server, {"generation_config.json": "{}"})
    assert await again(platform, server).get_file(MODEL, "main", "generation_config.json", required=False)


async def test_required_file_is_asked_for_again_once_its_hub_is_mended(server: FaultServer, hub: ModelHub) -> None:
    for required in (False, True):
        if required:
            with pytest.raises(FileNotFoundOnHubError, match="404"):
                await hub.get_file(MODEL, "v1.0.0", "config.json")
        else:
            assert await hub.get_file(MODEL, "v1.0.0", "config.json", required=False) is None
    publish(server, {"config.json": CONFIG}, "v1.0.0")
    assert await hub.read_file(MODEL, "v1.0.0", "config.json") == CONFIG.encode()


async def test_default_revision_is_used_when_none_is_given(platform: Platform, server: FaultServer) -> None:
    publish(server, {"config.json": CONFIG}, "v2.0.0")
    hub = ModelHub(platform, server.url, default_revision="v2.0.0", listing="none")
    assert await hub.read_file(MODEL, None, "config.json") == CONFIG.encode()
    assert await hub.has_file(MODEL, None, "config.json")
    assert not await hub.has_file(MODEL, "main", "config.json")


async def test_compressed_answer_is_stored_unpacked(platform: Platform, server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS})
    server.fault("*", "gzip")
    key = await hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert await platform.blobs.read(key) == WEIGHTS


async def test_no_cookie_is_sent(server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"config.json": CONFIG})
    await hub.get_file(MODEL, "main", "config.json")
    assert server.cookies() == []


# At the same time


async def test_same_file_wanted_twice_at_once_is_downloaded_once(server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS})
    seen: list[list[ProgressEvent]] = [[], []]
    keys = await asyncio.gather(
        *(hub.get_file(MODEL, "main", "onnx/model.onnx", on_progress=events.append) for events in seen)
    )
    assert keys[0] == keys[1]
    assert server.requests() == ["GET /org/name/main/onnx/model.onnx"]
    assert seen[0] == seen[1]
    assert seen[0][-1].status_text == "done"


async def test_one_callers_cancellation_leaves_the_others_download_alone(
    platform: Platform, server: FaultServer, hub: ModelHub
) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS})
    server.fault("*", "stall", len(WEIGHTS) // 2, times=1)
    halfway = asyncio.Event()
    first = asyncio.ensure_future(
        hub.get_file(MODEL, "main", "onnx/model.onnx", on_progress=lambda event: _at_bytes(event, halfway))
    )
    second = asyncio.ensure_future(hub.get_file(MODEL, "main", "onnx/model.onnx"))
    await halfway.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    # The server lets go of the stalled answer: a broken connection for the one who still waits, who goes on from there.
    server.state.reset()
    await second
    assert await stored(platform) == ["onnx/model.onnx"]
    assert [request.range for request in server.log("*/model.onnx")] == [
        f"bytes={len(WEIGHTS) // 2}-{len(WEIGHTS) - 1}"
    ]


async def test_last_callers_cancellation_stops_the_download_and_keeps_what_has_arrived(
    platform: Platform, server: FaultServer, hub: ModelHub
) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS})
    server.fault("*", "stall", len(WEIGHTS) // 2, times=1)
    halfway = asyncio.Event()
    events: list[ProgressEvent] = []

    def listen(event: ProgressEvent) -> None:
        events.append(event)
        _at_bytes(event, halfway)

    callers = [
        asyncio.ensure_future(hub.get_file(MODEL, "main", "onnx/model.onnx", on_progress=listen)) for _ in range(2)
    ]
    await halfway.wait()
    for caller in callers:
        caller.cancel()
    for caller in callers:
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert (events[-1].status_text, events[-1].ok) == ("done", False)
    assert await stored(platform) == []
    key = await hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert await platform.blobs.read(key) == WEIGHTS
    assert server.log("*/model.onnx")[-1].range == f"bytes={len(WEIGHTS) // 2}-{len(WEIGHTS) - 1}"


def _at_bytes(event: ProgressEvent, halfway: asyncio.Event) -> None:
    if event.total_loaded >= len(WEIGHTS) // 2:
        halfway.set()


# What can break


Break = Callable[[FaultServer], None]


@pytest.mark.parametrize(
    ("fault", "value", "error", "words"),
    [
        ("status", 404, FileNotFoundOnHubError, "404"),
        ("status", 401, FileNotFoundOnHubError, "private or gated"),
        ("status", 403, FileNotFoundOnHubError, "403"),
        ("status", 429, DownloadError, "429"),
        ("status", 500, DownloadError, "500"),
        ("status", 503, DownloadError, "503"),
        ("html", None, IntegrityError, "login page"),
        ("drop", None, DownloadError, "could not be reached"),
        ("truncate", 0, DownloadError, "broke off"),
    ],
)
async def test_fault_is_named_leaves_nothing_and_the_next_try_succeeds(
    platform: Platform,
    server: FaultServer,
    hub: ModelHub,
    fault: str,
    value: Any,
    error: type[HubError],
    words: str,
) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS})
    server.fault("*", fault, value)
    events: list[ProgressEvent] = []
    with pytest.raises(error, match=words) as caught:
        await hub.get_file(MODEL, "main", "onnx/model.onnx", on_progress=events.append)
    assert caught.value.details["url"] == f"{server.url}/org/name/main/onnx/model.onnx"
    assert f"{server.url}/org/name/main/onnx/model.onnx" in str(caught.value)
    assert ".." not in str(caught.value)
    assert (events[-1].status_text, events[-1].ok) == ("done", False)
    assert await stored(platform) == []
    server.mend()
    key = await hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert await platform.blobs.read(key) == WEIGHTS


@pytest.mark.parametrize(
    ("fault", "value", "words"),
    [("flip", 12345, "SHA-256"), ("shorter", 7, "list announced 512000")],
)
async def test_bytes_that_are_not_the_manifests_are_refused(
    platform: Platform, server: FaultServer, manifest_hub: ModelHub, fault: str, value: int, words: str
) -> None:
    publish_manifest(server, {"onnx/model.onnx": WEIGHTS})
    server.fault("*/model.onnx", fault, value, times=1)
    with pytest.raises(IntegrityError, match=words):
        await manifest_hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert await stored(platform) == ["manifest.json"]
    key = await manifest_hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert await platform.blobs.read(key) == WEIGHTS


async def test_failed_update_keeps_the_older_file(platform: Platform, server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"onnx/model.onnx": WEIGHTS})
    key = await hub.get_file(MODEL, "main", "onnx/model.onnx")
    publish(server, {"onnx/model.onnx": WEIGHTS[::-1]})
    server.fault("*", "truncate", 100)
    with pytest.raises(DownloadError):
        await hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert await platform.blobs.read(key) == WEIGHTS


async def test_empty_file_is_refused(platform: Platform, server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"config.json": b""})
    with pytest.raises(IntegrityError, match="empty"):
        await hub.get_file(MODEL, "main", "config.json")
    assert await stored(platform) == []


async def test_html_file_may_be_html(server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"card.html": "<p>A model"})
    assert await hub.read_file(MODEL, "main", "card.html") == b"<p>A model"


async def test_required_file_that_no_manifest_lists_is_not_asked_for(
    server: FaultServer, manifest_hub: ModelHub
) -> None:
    publish_manifest(server, {"config.json": CONFIG.encode()})
    with pytest.raises(FileNotFoundOnHubError, match=r"tokenizer\.json"):
        await manifest_hub.get_file(MODEL, "main", "tokenizer.json")
    assert server.requests("*/tokenizer.json") == []


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"a": 1}}',
        '{"files": {"a": {"size": -1, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": {"size": true, "sha256": "' + "0" * 64 + '"}}}',
        '{"files": {"a": {"size": 1, "sha256": "ABC"}}}',
        '{"files": {"../a": {"size": 1, "sha256": "' + "0" * 64 + '"}}}',
        "[" * 100_000,
    ],
)
async def test_bad_manifest_is_named_and_not_kept(
    platform: Platform, server: FaultServer, manifest_hub: ModelHub, manifest: str
) -> None:
    publish(server, {"config.json": CONFIG, "manifest.json": manifest})
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        await manifest_hub.get_file(MODEL, "main", "config.json")
    assert await stored(platform) == []
    publish_manifest(server, {"config.json": CONFIG.encode()})
    assert await manifest_hub.read_file(MODEL, "main", "config.json") == CONFIG.encode()


async def test_hub_without_a_manifest_works_as_well(server: FaultServer, manifest_hub: ModelHub) -> None:
    publish(server, {"config.json": CONFIG})
    assert await manifest_hub.entries(MODEL, "main") is None
    assert await manifest_hub.read_file(MODEL, "main", "config.json") == CONFIG.encode()


async def test_names_are_checked_before_any_request(server: FaultServer, hub: ModelHub) -> None:
    for model, revision, path in (
        ("../x", "main", "a"),
        (MODEL, "..", "a"),
        (MODEL, "main", "../../a"),
    ):
        with pytest.raises(OptionsError):
            await hub.get_file(model, revision, path)
    assert server.requests() == []


# What is stored


async def test_stored_models_are_listed_and_deleted(platform: Platform, server: FaultServer, hub: ModelHub) -> None:
    for revision in ("v1.0.0", "v2.0.0"):
        publish(server, {"config.json": CONFIG, "model.onnx": b"12345"}, revision)
        await hub.get_file(MODEL, revision, "config.json", task_name="feature-extraction")
        await hub.get_file(MODEL, revision, "model.onnx", task_name="fill-mask")
    publish(server, {"config.json": CONFIG}, "v1.0.0", "other")
    await hub.get_file("other", "v1.0.0", "config.json")

    models = await hub.list_models()
    assert [(m.model, m.revision, m.files, m.size) for m in models] == [
        (MODEL, "v1.0.0", 2, len(CONFIG) + 5),
        (MODEL, "v2.0.0", 2, len(CONFIG) + 5),
        ("other", "v1.0.0", 1, len(CONFIG)),
    ]
    assert models[0].task_names == ("feature-extraction", "fill-mask")
    assert [file.path for file in await hub.list_files(MODEL, "v1.0.0")] == ["config.json", "model.onnx"]

    assert await hub.delete_other_revisions(MODEL, {"v2.0.0"}) == len(CONFIG) + 5
    assert [(m.model, m.revision) for m in await hub.list_models()] == [(MODEL, "v2.0.0"), ("other", "v1.0.0")]
    await hub.delete_model(MODEL, "v3.0.0")
    await hub.delete_model(MODEL)
    assert [m.model for m in await hub.list_models()] == ["other"]


async def test_another_hubs_models_are_not_listed(platform: Platform, server: FaultServer, hub: ModelHub) -> None:
    publish(server, {"config.json": CONFIG}, model="sub/org/name")
    other = ModelHub(platform, f"{server.url}/sub", listing="none")
    await other.get_file("org/name", "main", "config.json")
    assert [m.model for m in await other.list_models()] == ["org/name"]
    assert await hub.delete_model("org/name") == 0


async def test_deleted_model_is_downloaded_anew(server: FaultServer, manifest_hub: ModelHub) -> None:
    publish_manifest(server, {"config.json": CONFIG.encode()}, "v1.0.0")
    await manifest_hub.get_file(MODEL, "v1.0.0", "config.json")
    await manifest_hub.delete_model(MODEL)
    publish_manifest(server, {"config.json": b"{}"}, "v1.0.0")
    assert await manifest_hub.read_file(MODEL, "v1.0.0", "config.json") == b"{}"
