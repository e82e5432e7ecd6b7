"""The settings client over real HTTP, against a mirror of plain files and a scripted server."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pywebml.errors import (
    AttachmentError,
    NoMatchingRecordError,
    OptionsError,
    SettingsNetworkError,
    SettingsResponseError,
    StaleSettingsError,
)
from pywebml.platform import Platform
from pywebml.progress import ProgressEvent
from pywebml.settings import RemoteSettings, Trust, select_options, select_runtime
from pywebml.settings.server import SettingsServer
from tests.faults.server import FaultServer

RUNTIME = "ml-onnx-runtime"
UNSIGNED: Any = {"trust": Trust(unsigned=True), "retry_seconds": 0}
WASM = b"\0asm" + bytes(range(256)) * 100
CHANGESET = f"/v1/buckets/main/collections/{RUNTIME}/changeset"
MONITOR = "/v1/buckets/monitor/collections/changes/changeset"


def record(name: str, last_modified: int, **fields: Any) -> dict[str, Any]:
    return {"id": name, "last_modified": last_modified, **fields}


def attachment(data: bytes = WASM, **fields: Any) -> dict[str, Any]:
    return {
        "filename": "ort.wasm",
        "location": f"main-workspace/{RUNTIME}/ort.wasm",
        "size": len(data),
        "hash": hashlib.sha256(data).hexdigest(),
        "mimetype": "application/wasm",
    } | fields


def publish(
    server: FaultServer,
    changes: list[dict[str, Any]],
    timestamp: int,
    *,
    monitor: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write the mirror: answers without file extension, the root as an index file."""
    entry = {"id": "1", "bucket": "main", "collection": RUNTIME, "last_modified": monitor or timestamp}
    server.write(MONITOR[1:], json.dumps({"metadata": {}, "timestamp": timestamp, "changes": [entry]}))
    answer = {"metadata": metadata or {"id": RUNTIME}, "timestamp": timestamp, "changes": changes}
    server.write(CHANGESET[1:], json.dumps(answer))
    root = {"capabilities": {"attachments": {"base_url": "attachments"}}}
    server.write("v1/index.html", json.dumps(root))
    server.write(f"v1/attachments/main-workspace/{RUNTIME}/ort.wasm", WASM)


@pytest.fixture
def settings(platform: Platform, server: FaultServer) -> RemoteSettings:
    return RemoteSettings(platform, f"{server.url}/v1/", **UNSIGNED)


async def attachments(platform: Platform) -> list[str]:
    return [info.key.path for info in await platform.blobs.list("attachment")]


# Collections


async def test_first_get_syncs_and_the_next_visit_makes_no_request(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [record("b", 20), record("a", 10)], 20)
    assert [r["id"] for r in await settings.get(RUNTIME)] == ["b", "a"]
    assert server.requests() == [f"GET {MONITOR}", f"GET {CHANGESET}"]
    assert server.queries(MONITOR) == [f"_expected=0&bucket=main&collection={RUNTIME}"]
    assert server.queries(CHANGESET) == ["_expected=20"]
    server.forget()
    assert [r["id"] for r in await RemoteSettings(platform, f"{server.url}/v1", **UNSIGNED).get(RUNTIME)] == ["b", "a"]
    assert server.requests() == []


async def test_get_without_sync_is_empty_before_the_first(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("a", 10)], 10)
    assert await settings.get(RUNTIME, sync_if_empty=False) == []
    assert server.requests() == []


async def test_gets_at_the_same_time_share_one_sync(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("a", 10)], 10)
    results = await asyncio.gather(*(settings.get(RUNTIME) for _ in range(3)))
    assert all([r["id"] for r in result] == ["a"] for result in results)
    assert len(server.requests()) == 2


async def test_sync_without_news_asks_the_monitor_only(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("a", 10)], 10)
    await settings.sync(RUNTIME)
    server.forget()
    result = await settings.sync(RUNTIME)
    assert (result.created, result.updated, result.deleted) == ([], [], [])
    assert server.requests() == [f"GET {MONITOR}"]


async def test_changes_are_merged_and_told(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("c", 30), record("b", 20), record("a", 10)], 30)
    first = await settings.sync(RUNTIME)
    assert [r["id"] for r in first.created] == ["c", "b", "a"]
    server.forget()
    publish(server, [record("d", 60), record("b", 50, version="2"), record("a", 40, deleted=True)], 60)
    result = await settings.sync(RUNTIME)
    assert server.queries(CHANGESET) == ["_expected=60&_since=30"]
    assert result.created == [record("d", 60)]
    assert result.updated == [{"old": record("b", 20), "new": record("b", 50, version="2")}]
    assert result.deleted == [record("a", 10)]
    assert [r["id"] for r in await settings.get(RUNTIME)] == ["d", "b", "c"]


async def test_whole_collection_answered_to_a_question_for_changes_replaces_it(
    server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [record("b", 20), record("a", 10)], 20)
    await settings.sync(RUNTIME)
    publish(server, [record("c", 30), record("a", 10)], 30)
    assert [r["id"] for r in (await settings.sync(RUNTIME)).deleted] == ["b"]
    publish(server, [record("d", 40)], 40, metadata={"complete": True})
    await settings.sync(RUNTIME)
    assert [r["id"] for r in await settings.get(RUNTIME)] == ["d"]


async def test_stale_answers_are_refused(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("b", 20)], 20)
    await settings.sync(RUNTIME)
    publish(server, [record("a", 10)], 10)
    await settings.sync(RUNTIME)
    publish(server, [record("a", 10)], 10, monitor=30)
    with pytest.raises(StaleSettingsError, match=r"ml-onnx-runtime \(10\).*\(20\)"):
        await settings.sync(RUNTIME)
    assert [r["id"] for r in await settings.get(RUNTIME)] == ["b"]


async def test_failed_sync_keeps_what_is_stored(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("a", 10)], 10)
    await settings.sync(RUNTIME)
    publish(server, [record("b", 20)], 20)
    server.fault(CHANGESET, "truncate", 10)
    with pytest.raises(SettingsNetworkError):
        await settings.sync(RUNTIME)
    assert [r["id"] for r in await settings.get(RUNTIME)] == ["a"]


async def test_unknown_collection_is_named(server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [], 10)
    with pytest.raises(SettingsResponseError, match="ml-other"):
        await settings.get("ml-other")


async def test_servers_are_kept_apart(platform: Platform, server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [record("a", 10)], 10)
    await settings.get(RUNTIME)
    other = RemoteSettings(platform, f"{server.url}/v2", **UNSIGNED)
    assert await other.get(RUNTIME, sync_if_empty=False) == []


async def test_broken_local_copy_is_fetched_anew(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [record("a", 10)], 10)
    name = f"settings/{server.url}/v1/main/{RUNTIME}"
    for broken in ("text", {"timestamp": 10, "records": {"a": {"id": "b"}}}, {"timestamp": "10", "records": {}}):
        await platform.documents.put(name, broken)
        assert [r["id"] for r in await settings.get(RUNTIME)] == ["a"]


@pytest.mark.parametrize("path", [MONITOR, CHANGESET])
@pytest.mark.parametrize(("kind", "value"), [("status", 404), ("status", 503), ("drop", None), ("truncate", 20)])
async def test_server_in_trouble_is_a_network_error(
    server: FaultServer, settings: RemoteSettings, path: str, kind: str, value: Any
) -> None:
    publish(server, [record("a", 10)], 10)
    server.fault(path, kind, value, times=1)
    with pytest.raises(SettingsNetworkError) as caught:
        await settings.get(RUNTIME)
    assert path in caught.value.details["url"]
    assert len(await settings.get(RUNTIME)) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("<!doctype html>", "web page"),
        ("[]", "no object"),
        ('{"timestamp": 10}', "changes"),
        ('{"timestamp": 10, "changes": [1]}', "changes"),
        ('{"timestamp": "10", "changes": []}', "timestamp"),
        ('{"timestamp": true, "changes": []}', "timestamp"),
        ('{"timestamp": 10, "changes": [{"last_modified": 1}]}', "id"),
        ('{"timestamp": 10, "changes": [{"id": "a"}]}', "last_modified"),
        ('{"timestamp": 10, "changes": [{"id": "a", "last_modified": -1}]}', "last_modified"),
        ('{"timestamp": 10, "metadata": [], "changes": []}', "metadata"),
        ('{"timestamp": NaN, "changes": []}', "NaN"),
        ('{"timestamp": 10, "changes": ' + "[" * 100_000, "deeper"),
        ('{"timestamp": 10, "changes": [' + '{"id": "a", "last_modified": 1},' * 2 + "{}]}", "twice"),
    ],
)
async def test_answer_that_is_not_the_protocol_is_named_and_not_kept(
    server: FaultServer, settings: RemoteSettings, answer: str, words: str
) -> None:
    publish(server, [record("a", 10)], 10)
    server.write(CHANGESET[1:], answer)
    with pytest.raises(SettingsResponseError, match=words) as caught:
        await settings.get(RUNTIME)
    assert CHANGESET in caught.value.details["url"]
    assert await settings.get(RUNTIME, sync_if_empty=False) == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "a?b"])
async def test_collection_name_that_could_lead_elsewhere_is_refused(
    platform: Platform, settings: RemoteSettings, name: str
) -> None:
    with pytest.raises(OptionsError):
        await settings.get(name)
    with pytest.raises(OptionsError):
        RemoteSettings(platform, settings.server_url, bucket=name, **UNSIGNED)


@pytest.mark.parametrize("url", ["", "v1", "file:///v1", "http://", "http://u:p@h/v1", "http://h/v1?a"])
def test_server_address_that_is_not_usable_is_refused(platform: Platform, url: str) -> None:
    with pytest.raises(OptionsError) as caught:
        RemoteSettings(platform, url, **UNSIGNED)
    assert caught.value.details["field"] == "settingsServer"


# Attachments


async def test_attachment_is_downloaded_once(platform: Platform, server: FaultServer, settings: RemoteSettings) -> None:
    publish(server, [], 10)
    given = record("a", 10, attachment=attachment())
    events: list[ProgressEvent] = []
    key = await settings.attachment(RUNTIME, given, events.append)
    assert await platform.blobs.read(key) == WASM
    assert (events[0].type, events[0].status_text, events[-1].status_text) == ("downloading", "initiate", "done")
    assert events[-1].total_loaded == len(WASM)
    server.forget()
    again: list[ProgressEvent] = []
    assert (
        await RemoteSettings(platform, f"{server.url}/v1", **UNSIGNED).attachment(RUNTIME, given, again.append) == key
    )
    assert server.requests() == []
    assert [(e.type, e.status_text) for e in again] == [
        ("loading_from_cache", "initiate"),
        ("loading_from_cache", "done"),
    ]


async def test_same_attachment_wanted_twice_at_once_is_downloaded_once(
    server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [], 10)
    given = record("a", 10, attachment=attachment())
    await asyncio.gather(settings.attachment(RUNTIME, given), settings.attachment(RUNTIME, given))
    assert len(server.requests("*.wasm")) == 1


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("flip", 100, AttachmentError),
        ("shorter", 1, AttachmentError),
        ("html", None, AttachmentError),
        ("truncate", 100, SettingsNetworkError),
        ("status", 404, SettingsNetworkError),
        ("status", 500, SettingsNetworkError),
        ("drop", None, SettingsNetworkError),
    ],
)
async def test_broken_attachment_is_named_leaves_nothing_and_the_next_try_succeeds(
    platform: Platform,
    server: FaultServer,
    settings: RemoteSettings,
    kind: str,
    value: Any,
    error: type[Exception],
) -> None:
    publish(server, [], 10)
    server.fault("*.wasm", kind, value)
    events: list[ProgressEvent] = []
    with pytest.raises(error, match=r"ort\.wasm") as caught:
        await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()), events.append)
    if error is AttachmentError:
        assert hashlib.sha256(WASM).hexdigest() in str(caught.value)
    assert (events[-1].status_text, events[-1].ok) == ("done", False)
    assert await attachments(platform) == []
    # What a server says for good is not asked again.
    assert len(server.requests("*.wasm")) == (1 if value == 404 else 4)
    server.mend()
    await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()))
    assert await attachments(platform) == ["ort.wasm"]


async def test_attachment_that_breaks_three_times_arrives_at_the_fourth(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [], 10)
    server.fault("*.wasm", "flip", 100, times=3)
    await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()))
    assert await attachments(platform) == ["ort.wasm"]


async def test_stored_attachment_that_lost_its_bytes_is_fetched_anew(
    platform: Platform, server: FaultServer, settings: RemoteSettings, tmp_path: Path
) -> None:
    publish(server, [], 10)
    given = record("a", 10, attachment=attachment())
    key = await settings.attachment(RUNTIME, given)
    [data] = (tmp_path / "cache").rglob("*.bin")
    data.write_bytes(b"?" * len(WASM))
    assert not await platform.blobs.verify(key)
    server.forget()
    assert await settings.attachment(RUNTIME, given) == key
    assert len(server.requests("*.wasm")) == 1
    assert await platform.blobs.verify(key)


async def test_changed_record_replaces_its_attachment(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [], 10)
    await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()))
    server.write("v1/attachments/new/other.wasm", b"new")
    changed = attachment(b"new", filename="other.wasm", location="new/other.wasm")
    key = await settings.attachment(RUNTIME, record("a", 20, attachment=changed))
    assert await platform.blobs.read(key) == b"new"
    assert await attachments(platform) == ["other.wasm"]


async def test_deleted_record_takes_its_attachment_along(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    kept, gone = record("a", 10, attachment=attachment()), record("b", 11, attachment=attachment())
    publish(server, [gone, kept], 11)
    for each in await settings.get(RUNTIME):
        await settings.attachment(RUNTIME, each)
    publish(server, [record("b", 20, deleted=True)], 20)
    await settings.sync(RUNTIME)
    assert [info.key.revision for info in await platform.blobs.list("attachment")] == ["a"]


async def test_moved_attachments_are_found_again(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [], 10)
    await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()))
    server.write("v1/index.html", '{"capabilities": {"attachments": {"base_url": "' + server.url + '/moved/"}}}')
    server.write("moved/new.wasm", b"new")
    moved = attachment(b"new", location="new.wasm")
    key = await settings.attachment(RUNTIME, record("b", 20, attachment=moved))
    assert await platform.blobs.read(key) == b"new"


@pytest.mark.parametrize(
    "fields",
    [
        {"filename": "../a"},
        {"filename": "a/b"},
        {"filename": ""},
        {"filename": None},
        {"location": "../a"},
        {"location": "/a"},
        {"location": "//other.example/a"},
        {"location": "https://other.example/a"},
        {"location": "a/%2e%2e/b"},
        {"location": "a\\b"},
        {"location": "a?b"},
        {"location": 1},
        {"size": 0},
        {"size": "1"},
        {"size": True},
        {"hash": "abc"},
        {"hash": None},
    ],
)
async def test_attachment_fields_that_could_lead_elsewhere_are_refused(
    server: FaultServer, settings: RemoteSettings, fields: dict[str, Any]
) -> None:
    with pytest.raises(AttachmentError, match="'a'"):
        await settings.attachment(RUNTIME, record("a", 10, attachment=attachment(**fields)))
    assert server.requests() == []


async def test_record_without_attachment_is_named(settings: RemoteSettings) -> None:
    with pytest.raises(AttachmentError, match="there is none"):
        await settings.attachment(RUNTIME, record("a", 10))


@pytest.mark.parametrize(
    "root",
    [
        "{}",
        "<html>",
        '{"capabilities": []}',
        '{"capabilities": {"attachments": {"base_url": 1}}}',
        '{"capabilities": {"attachments": {"base_url": "file:///a"}}}',
    ],
)
async def test_root_that_is_not_the_protocol_is_named(server: FaultServer, settings: RemoteSettings, root: str) -> None:
    publish(server, [], 10)
    server.write("v1/index.html", root)
    with pytest.raises(SettingsResponseError):
        await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()))
    publish(server, [], 10)
    await settings.attachment(RUNTIME, record("a", 10, attachment=attachment()))


async def test_cancelled_attachment_leaves_nothing(
    platform: Platform, server: FaultServer, settings: RemoteSettings
) -> None:
    publish(server, [], 10)
    server.fault("*.wasm", "stall", 1000, times=1)
    arrived = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if event.total_loaded:
            arrived.set()

    task = asyncio.ensure_future(settings.attachment(RUNTIME, record("a", 10, attachment=attachment()), listen))
    await arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await attachments(platform) == []


# Which record


def test_runtime_is_the_newest_record_that_the_glue_can_drive() -> None:
    def chosen(*records: dict[str, Any], version: str = "1.30.0") -> Any:
        return select_runtime(
            [{"id": str(number), "name": "ort.wasm", **fields} for number, fields in enumerate(records)],
            name="ort.wasm",
            version=version,
        )["id"]

    assert chosen({"version": "1.30.1"}, {"version": "1.30.0"}, {"version": "1.30.0", "name": "other.wasm"}) == "1"
    release = {"release": "v1.30.0"}
    # Pre-releases come before, and another major's records do not count, whatever they say they are.
    ladder = ("1.9", "1.10a1", "1.10", "2.0a1", "2.0", "0.9")
    assert chosen(*({"version": version, **release} for version in ladder)) == "2"
    assert chosen({"version": "1.10a1", **release}, {"version": "1.9", **release}) == "0"
    assert chosen({"version": "1.31", "release": "v1.31.0"}, {"version": "1.9", **release}) == "1"
    with pytest.raises(NoMatchingRecordError, match=r"1\.31\.0.*ort\.wasm 1\.30\.1"):
        chosen({"version": "1.30.1"}, version="1.31.0")
    with pytest.raises(NoMatchingRecordError, match="nothing"):
        chosen()
    with pytest.raises(NoMatchingRecordError, match="record 1 does not tell its version"):
        chosen({"version": "1.30.0"}, {})
    with pytest.raises(NoMatchingRecordError, match="the records 0, 1 have the same version"):
        chosen({"version": "1.30.0"}, {"version": "1.30.0"})


def test_options_are_found_by_feature_then_by_task() -> None:
    records = [
        {"id": "1", "featureId": "alt-text", "taskName": "image-to-text", "modelId": "m/1"},
        {"id": "2", "taskName": "feature-extraction", "modelId": "m/2"},
        {"id": "3", "taskName": "feature-extraction", "modelId": "m/3"},
    ]

    def chosen(**wanted: str) -> Any:
        found = select_options(records, **wanted)
        return found and found["id"]

    assert chosen(feature_id="alt-text") == "1"
    assert chosen(feature_id="alt-text", model_id="m/9") is None
    assert chosen(feature_id="unknown", task_name="image-to-text") == "1"
    assert chosen(task_name="feature-extraction", model_id="m/3") == "3"
    assert chosen(task_name="translation") is None
    assert chosen() is None
    with pytest.raises(NoMatchingRecordError, match="2, 3"):
        chosen(task_name="feature-extraction")


@pytest.mark.parametrize(
    ("server_url", "x5u"),
    [
        ("https://settings.example/v1", "http://chains.example/chain.pem"),
        ("https://settings.example/v1", "file:///etc/passwd"),
        ("http://127.0.0.1:9/v1", "ftp://chains.example/chain.pem"),
        ("http://127.0.0.1:9/v1", "data:text/plain,x"),
    ],
)
async def test_chains_come_over_no_weaker_a_connection(platform: Platform, server_url: str, x5u: str) -> None:
    with pytest.raises(SettingsResponseError, match="no address that a certificate chain can have"):
        await SettingsServer(platform, server_url).read_chain(x5u)
