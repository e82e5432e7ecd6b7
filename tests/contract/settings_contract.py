"""What the settings client must do against a real Kinto server. The numbers are those of the list of cases.

Each function takes a `Kinto` and starts with a collection of its own, so that the store need not be emptied.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pywebml.errors import (
    AttachmentError,
    NoMatchingRecordError,
    OptionsError,
    SettingsBackoffError,
    SettingsNetworkError,
    SettingsResponseError,
    SignatureError,
    StaleSettingsError,
    UnknownCollectionError,
)
from pywebml.platform import Platform
from pywebml.settings import Dump, RemoteSettings, SyncResult, Trust, select_options, select_runtime
from tests.contract.expect import raises
from tests.kinto.admin import KintoAdmin

WASM = b"\0asm" + bytes(range(256)) * 50

_numbers = itertools.count(1)


class Shifted:
    """A platform whose clock goes wrong by some seconds."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.seconds = 0.0

    def now(self) -> float:
        return self._platform.now() + self.seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)


@dataclasses.dataclass
class Kinto:
    """A server, its owner, and a platform of its client."""

    platform: Platform
    admin: KintoAdmin
    root_sha256: str
    all_ec_root_sha256: str
    bad_chains: Mapping[str, str]
    collection: str = ""

    async def start(self) -> None:
        """A new, empty collection."""
        self.collection = f"collection-{next(_numbers)}-{int(self.platform.now() * 1000)}"
        await self.admin.setup(self.collection)

    def client(self, platform: Any = None, **arguments: Any) -> RemoteSettings:
        arguments = {"trust": Trust(self.root_sha256), "retry_seconds": 0.001, **arguments}
        return RemoteSettings(platform or self.platform, self.admin.url, **arguments)

    async def put(self, record_id: str, **fields: Any) -> dict[str, Any]:
        return await self.admin.put(self.collection, record_id, **fields)

    async def change(self, **attributes: Any) -> None:
        await self.admin.change(self.collection, **attributes)

    async def changesets(self) -> list[str]:
        return await self.admin.requests(f"{self.collection}/changeset")

    @property
    def document(self) -> str:
        return f"settings/{self.admin.url}/main/{self.collection}"

    async def stored(self) -> Any:
        return await self.platform.documents.get(self.document)

    async def tamper(self) -> None:
        """Change what is stored, as no server did."""
        document = await self.stored()
        for record in document["records"].values():
            record["evil"] = True
        await self.platform.documents.put(self.document, document)


def ids(records: list[dict[str, Any]]) -> list[str]:
    return sorted(record["id"] for record in records)


def told(result: SyncResult) -> tuple[list[str], list[str], list[str]]:
    return ids(result.created), ids([change["new"] for change in result.updated]), ids(result.deleted)


# Sync


async def case_01_first_sync_stores_records_timestamp_and_metadata(k: Kinto) -> None:
    await k.put("a", title="one")
    newest = await k.put("b", title="two")
    settings = k.client()
    assert told(await settings.sync(k.collection)) == (["a", "b"], [], [])
    assert [record["title"] for record in await settings.get(k.collection)] == ["two", "one"]
    stored = await k.stored()
    assert stored["timestamp"] == newest["last_modified"]
    assert stored["metadata"]["id"] == k.collection
    assert stored["metadata"]["signatures"]


async def case_02_additions_changes_and_deletions_arrive(k: Kinto) -> None:
    for name in ("a", "b"):
        await k.put(name)
    settings = k.client()
    await settings.sync(k.collection)
    await k.put("c")
    assert told(await settings.sync(k.collection)) == (["c"], [], [])
    await k.put("d")
    await k.put("b", title="new")
    await k.admin.delete(k.collection, "a")
    assert told(await settings.sync(k.collection)) == (["d"], ["b"], ["a"])
    assert ids(await settings.get(k.collection)) == ["b", "c", "d"]


async def case_03_sync_without_news_asks_the_monitor_only(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.admin.mend()
    assert (await settings.sync(k.collection)).empty
    assert await k.changesets() == []
    assert len(await k.admin.requests("monitor")) == 1


async def case_04_renewed_signature_is_stored_and_nothing_is_told(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    before = await k.stored()
    timestamp = await k.admin.resign(k.collection)
    assert (await settings.sync(k.collection)).empty
    after = await k.stored()
    assert (after["timestamp"], after["records"]) == (timestamp, before["records"])
    assert after["metadata"]["signatures"] != before["metadata"]["signatures"]


async def case_05_since_is_sent_without_quotes(k: Kinto) -> None:
    first = await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    second = await k.put("b")
    await k.admin.mend()
    await settings.sync(k.collection)
    [request] = await k.changesets()
    assert request.endswith(f"?_expected={second['last_modified']}&_since={first['last_modified']}")


async def case_06_syncs_and_gets_at_the_same_time_share_one_sync(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await asyncio.gather(*(settings.sync(k.collection) for _ in range(5)))
    assert len(await k.changesets()) == 1
    await k.platform.documents.delete(k.document)
    answers = await asyncio.gather(*(settings.get(k.collection) for _ in range(5)))
    assert [ids(records) for records in answers] == [["a"]] * 5
    assert len(await k.changesets()) == 2


async def case_07_unknown_collection_is_named(k: Kinto) -> None:
    with raises(UnknownCollectionError, "nobody", k.admin.url):
        await k.client().sync("nobody")


async def case_08_listeners_hear_of_visible_changes_only(k: Kinto) -> None:
    await k.put("a", filter_expression="true")
    settings = k.client()
    heard: list[tuple[str, tuple[list[str], list[str], list[str]]]] = []
    stop = settings.on_sync(lambda collection, result: heard.append((collection, told(result))))
    await settings.sync(k.collection)
    await k.put("a", filter_expression="true", title="new")
    await k.put("b", filter_expression="true")
    await settings.sync(k.collection)
    assert heard == [(k.collection, (["a"], [], [])), (k.collection, (["b"], ["a"], []))]
    await k.put("hidden", filter_expression="false")
    assert (await settings.sync(k.collection)).empty
    await k.admin.delete(k.collection, "hidden")
    await settings.sync(k.collection)
    assert len(heard) == 2
    # For who sees it, a record that is filtered away is gone.
    await k.put("a", filter_expression="false")
    assert told(await settings.sync(k.collection)) == ([], [], ["a"])
    assert len(heard) == 3
    stop()
    await k.put("c")
    await settings.sync(k.collection)
    assert len(heard) == 3


async def case_09_whole_set_answered_to_since_drops_what_is_gone(k: Kinto) -> None:
    for name in ("a", "b"):
        await k.put(name)
    settings = k.client()
    await settings.sync(k.collection)
    await k.admin.delete(k.collection, "b")
    await k.put("c")
    await k.change(test_since="full")
    assert told(await settings.sync(k.collection)) == (["c"], [], ["b"])
    # Nothing in the answer tells that it is whole: only the signature does.
    await k.admin.delete(k.collection, "a")
    await k.admin.delete(k.collection, "c")
    await k.put("d")
    assert told(await settings.sync(k.collection)) == (["d"], [], ["a", "c"])


async def case_10_older_state_is_refused_unless_the_stored_one_is_corrupt(k: Kinto) -> None:
    await k.put("a")
    await k.admin.snapshot(k.collection, "old")
    await k.put("b")
    settings = k.client()
    await settings.sync(k.collection)
    await k.put("c")
    await k.change(test_snapshot="old")
    with raises(StaleSettingsError, k.collection, "older"):
        await settings.sync(k.collection)
    assert ids(await settings.get(k.collection)) == ["a", "b"]
    await k.tamper()
    await settings.sync(k.collection)
    assert ids(await settings.get(k.collection)) == ["a"]


async def case_11_servers_and_buckets_are_kept_apart(k: Kinto) -> None:
    await k.put("a")
    await k.client().sync(k.collection)
    other = RemoteSettings(
        k.platform, k.admin.url.replace("127.0.0.1", "localhost"), trust=Trust(k.root_sha256), retry_seconds=0
    )
    preview = k.client(bucket="preview")
    assert await other.get(k.collection, sync_if_empty=False) == []
    assert await preview.get(k.collection, sync_if_empty=False) == []
    assert ids(await k.client().get(k.collection, sync_if_empty=False)) == ["a"]


# Signatures


async def case_12_good_signature_is_accepted_also_at_the_second_try(k: Kinto) -> None:
    await k.put("a", title="good")
    answer = await k.admin.call("GET", f"/buckets/main/collections/{k.collection}/changeset?_expected=0")
    answer["changes"][0]["title"] = "evil"
    await k.admin.mend()
    await k.admin.fault(f"*/{k.collection}/changeset", body=json.dumps(answer), times=1)
    settings = k.client()
    assert [record["title"] for record in (await settings.sync(k.collection)).created] == ["good"]
    assert len(await k.changesets()) == 2


async def case_13_one_good_signature_of_several_is_enough(k: Kinto) -> None:
    await k.put("a")
    for wishes in (
        {"test_signers": ["expired", "good"]},
        {"test_signers": ["wrong_root", "wrong_name", "good"]},
        {"test_signers": ["good"], "test_signatures": "unknown_mode_first"},
        {"test_signers": ["good", "other"], "test_signatures": "empty_x5u"},
        {"test_signers": ["good", "other"], "test_signatures": "missing_chain"},
    ):
        await k.change(**{"test_signatures": None, **wishes})
        await k.platform.documents.delete(k.document)
        assert told(await k.client().sync(k.collection)) == (["a"], [], [])


async def case_14_missing_or_empty_signatures_are_refused(k: Kinto) -> None:
    await k.put("a")
    for fault, word in (("none", "no signature"), ("empty", "no signature"), ("empty_x5u", "certificates are")):
        await k.change(test_signatures=fault)
        with raises(SignatureError, k.collection, word):
            await k.client().sync(k.collection)
        assert await k.stored() is None


async def case_15_what_is_not_the_signers_is_refused(k: Kinto) -> None:
    await k.put("a", title="one")
    await k.put("b")
    clean = dict.fromkeys(("test_signatures", "test_signers", "test_tamper", "test_drop", "test_shift"))
    for wishes, word in (
        ({"test_signatures": "garbage"}, "not that of these records"),
        ({"test_signatures": "truncated"}, "96 bytes"),
        ({"test_signers": ["expired"]}, "has expired"),
        ({"test_signers": ["wrong_name"]}, "onecrl"),
        ({"test_signers": ["wrong_root"]}, "is the trusted one"),
        ({"test_tamper": {"title": "evil"}}, "not that of these records"),
        ({"test_tamper": {"more": 1}}, "not that of these records"),
        ({"test_drop": "a"}, "not that of these records"),
        ({"test_shift": 1}, "not that of these records"),
        ({"test_shift": 10_000_000_000}, "not that of these records"),
    ):
        await k.change(**{**clean, **wishes})
        with raises(SignatureError, k.collection, word):
            await k.client().sync(k.collection)
        assert await k.stored() is None
    await k.change(**clean)
    await k.client().sync(k.collection)


async def case_16_last_good_records_stay_when_the_signature_is_bad_twice(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    before = await k.stored()
    await k.put("b")
    heard: list[str] = []
    settings.on_sync(lambda collection, result: heard.append(collection))
    for wishes, reason in (
        ({"test_tamper": {"x": 1}}, "not that of these records"),
        ({"test_signers": ["expired"]}, "has expired"),
        ({"test_signers": ["wrong_root"]}, "is the trusted one"),
        ({"test_signers": ["wrong_name"]}, "and not for"),
    ):
        await k.change(**{"test_tamper": None, "test_signers": None, **wishes})
        await k.admin.mend()
        with raises(SignatureError, k.collection, reason):
            await settings.sync(k.collection)
        # Once with what is stored, once from scratch.
        assert ["_since" in request for request in await k.changesets()] == [True, False]
        assert await k.stored() == before
        assert ids(await settings.get(k.collection, verify=True)) == ["a"]
    assert heard == []


async def case_17_records_changed_here_are_fetched_anew(k: Kinto) -> None:
    await k.put("a")
    await k.put("b")
    settings = k.client()
    await settings.sync(k.collection)
    await k.tamper()
    await k.put("c")
    heard: list[tuple[list[str], list[str], list[str]]] = []
    settings.on_sync(lambda collection, result: heard.append(told(result)))
    await settings.sync(k.collection)
    # Relative to what was shown before.
    assert heard == [(["c"], ["a", "b"], [])]
    assert not any("evil" in record for record in await settings.get(k.collection, verify=True))


async def case_18_records_changed_here_are_not_kept_when_the_server_is_bad_too(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.tamper()
    await k.put("b")
    await k.change(test_signatures="garbage")
    with raises(SignatureError, k.collection):
        await settings.sync(k.collection)
    assert await settings.get(k.collection, sync_if_empty=False) == []


async def case_19_every_bad_chain_is_refused_with_its_reason(k: Kinto) -> None:
    await k.put("a")
    for name, reason in k.bad_chains.items():
        await k.change(test_signers=[name])
        with raises(SignatureError, k.collection, reason):
            await k.client().sync(k.collection)
    for name, root in (("good", k.root_sha256), ("other", k.root_sha256), ("all_ec", k.all_ec_root_sha256)):
        await k.change(test_signers=[name])
        await k.platform.documents.delete(k.document)
        await k.client(trust=Trust(root)).sync(k.collection)
    with raises(SignatureError, "is the trusted one"):
        await k.platform.documents.delete(k.document)
        await k.client(trust=Trust()).sync(k.collection)


async def case_20_chain_that_cannot_be_fetched_is_a_network_error(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.put("b")
    await k.change(test_signatures="missing_chain")
    await k.admin.mend()
    with raises(SettingsNetworkError, "404", "nobody.pem"):
        await settings.sync(k.collection)
    assert len(await k.changesets()) == 1
    assert ids(await settings.get(k.collection)) == ["a"]
    await k.change(test_signatures=None)
    await k.admin.fault("/v1/chains/*", cut=100)
    with raises(SettingsNetworkError, "good.pem"):
        await settings.sync(k.collection)
    assert ids(await settings.get(k.collection)) == ["a"]


async def case_21_files_and_every_script_are_signed_and_fractions_refused(k: Kinto) -> None:
    await k.admin.attach(k.collection, "file", "ort.wasm", WASM)
    await k.put("text", title='é🙂\u2028\x7f"\\/\uffff', nested={"ü": [1, None, True, {"𝒳": -(2**53)}]})
    settings = k.client()
    assert told(await settings.sync(k.collection))[0] == ["file", "text"]
    await k.put("more")
    await k.change(test_tamper={"fraction": 0.5})
    with raises(SignatureError, "float"):
        await settings.sync(k.collection)


async def case_22_set_of_another_collection_still_verifies(k: Kinto) -> None:
    # A signature does not name its collection; this is what the protocol can and cannot promise.
    await k.put("a")
    other = f"{k.collection}-other"
    await k.admin.call("PUT", f"/buckets/main/collections/{other}", {"data": {"test_replay": k.collection}})
    await k.admin.put(other, "b")
    stale_or_accepted = k.client()
    try:
        await stale_or_accepted.sync(other)
        assert ids(await stale_or_accepted.get(other)) == ["a"]
    finally:
        await k.platform.documents.delete(f"settings/{k.admin.url}/main/{other}")


async def case_23_stored_records_are_verified_on_demand_without_a_request(k: Kinto) -> None:
    await k.put("a")
    platform = Shifted(k.platform)
    settings = k.client(platform)
    await settings.sync(k.collection)
    await k.admin.mend()
    # Long after the signer's certificate has expired, what was good when it came still is.
    platform.seconds = 400 * 86400.0
    assert ids(await settings.get(k.collection, verify=True)) == ["a"]
    await k.tamper()
    with raises(SignatureError, k.collection):
        await settings.get(k.collection, verify=True)
    assert await k.admin.requests() == []


# What the server answers


async def case_24_backoff_is_honoured_and_ends(k: Kinto) -> None:
    await k.put("a")
    platform = Shifted(k.platform)
    settings = k.client(platform)
    try:
        await k.admin.fault("*/monitor/*", headers={"Backoff": "600"}, body="", status=503, times=1)
        with raises(SettingsNetworkError, "503"):
            await settings.sync(k.collection)
        await k.admin.mend()
        with raises(SettingsBackoffError, "600 seconds"):
            await settings.sync(k.collection)
        # Also by a client that starts later.
        with raises(SettingsBackoffError):
            await k.client(platform).sync(k.collection)
        assert await k.admin.requests() == []
        platform.seconds = 601
        assert told(await settings.sync(k.collection))[0] == ["a"]
    finally:
        await forget_backoff(k)


async def case_25_servers_in_trouble_are_named_and_their_retry_after_honoured(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.put("b")
    page = {"status": 504, "body": "<html>Gateway", "content_type": "text/html"}
    await k.admin.fault("*/monitor/*", **page, times=1)
    with raises(SettingsNetworkError, "504", "Try again later"):
        await settings.sync(k.collection)
    await k.admin.fault("*/changeset", status=503, headers={"Retry-After": "30"}, times=1)
    try:
        with raises(SettingsNetworkError, "503"):
            await settings.sync(k.collection)
        with raises(SettingsBackoffError, "30 seconds"):
            await settings.sync(k.collection)
        assert ids(await settings.get(k.collection)) == ["a"]
    finally:
        await forget_backoff(k)


async def case_26_server_that_does_not_know_our_timestamp_is_asked_for_everything(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.admin.delete(k.collection, "a")
    await k.put("b")
    await k.change(test_since="refused")
    await k.admin.mend()
    assert told(await settings.sync(k.collection)) == (["b"], [], ["a"])
    assert ["_since" in request for request in await k.changesets()] == [True, False]


async def case_27_answers_that_are_not_the_protocol_are_named(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.put("b")
    for path in ("*/monitor/*", f"*/{k.collection}/changeset"):
        for body, word in (
            ('{"changes": [', "no JSON"),
            ("<!doctype html><title>Login</title>", "web page"),
            ('{"timestamp": 1}', "changes"),
            ("[]", "list"),
        ):
            await k.admin.mend()
            kind = "text/html" if body.startswith("<") else "application/json"
            await k.admin.fault(path, body=body, content_type=kind)
            with raises(SettingsResponseError, k.admin.url, word):
                await settings.sync(k.collection)
            assert ids(await settings.get(k.collection)) == ["a"]


async def case_28_without_a_network_the_stored_records_serve(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    await settings.sync(k.collection)
    await k.put("b")
    await k.admin.fault("*/changeset", cut=10)
    with raises(SettingsNetworkError, "broke off"):
        await settings.sync(k.collection)
    assert ids(await settings.get(k.collection)) == ["a"]
    # Port 9 is nobody's.
    nowhere = RemoteSettings(k.platform, "http://127.0.0.1:9/v1", trust=Trust(k.root_sha256))
    with raises(SettingsNetworkError, "could not be reached"):
        await nowhere.get(k.collection)


async def case_29_alerts_are_passed_on_and_the_end_of_a_server_is_told(k: Kinto) -> None:
    await k.put("a")
    settings = k.client()
    alert = {"code": "soft-eol", "message": "Please move.", "url": "https://moved.example/"}
    await k.admin.fault("*/monitor/*", headers={"Alert": json.dumps(alert)}, times=1)
    await settings.sync(k.collection)
    assert dict(settings.alert or {}) == alert
    alert = {"code": "hard-eol", "message": "Gone for good.", "url": "https://gone.example/"}
    await k.admin.fault("*/monitor/*", status=410, headers={"Alert": json.dumps(alert)})
    with raises(SettingsNetworkError, "410", "Gone for good.", "https://gone.example/"):
        await settings.sync(k.collection)


async def case_30_server_that_allows_no_other_origin_is_named(k: Kinto) -> None:
    await k.put("a")
    await k.admin.fault("*/monitor/*", no_cors=True)
    if k.platform.environment.name == "browser":
        with raises(SettingsNetworkError, k.admin.url, "CORS"):
            await k.client().sync(k.collection)
    else:
        # Only browsers ask for permission.
        await k.client().sync(k.collection)


# Attachments


async def only_record(k: Kinto, settings: RemoteSettings) -> dict[str, Any]:
    [record] = await settings.get(k.collection)
    return record


async def case_31_attachment_is_checked_and_asked_for_four_times(k: Kinto) -> None:
    await k.admin.attach(k.collection, "a", "ort.wasm", WASM)
    settings = k.client()
    record = await only_record(k, settings)
    for fault, word in (({"flip": 100}, record["attachment"]["hash"]), ({"shorter": 1}, f"{len(WASM)}")):
        await k.admin.mend()
        await k.admin.fault("/v1/attachments/*", **fault)
        with raises(AttachmentError, ".wasm", word):
            await settings.attachment(k.collection, record)
        assert len(await k.admin.requests("/attachments/")) == 4
        assert not [i for i in await k.platform.blobs.list("attachment") if k.collection in i.key.owner]
    await k.admin.mend()
    await k.admin.fault("/v1/attachments/*", flip=100, times=3)
    key = await settings.attachment(k.collection, record)
    assert await k.platform.blobs.read(key) == WASM


async def case_32_missing_attachment_is_a_network_error(k: Kinto) -> None:
    await k.admin.attach(k.collection, "a", "ort.wasm", WASM)
    settings = k.client()
    record = await only_record(k, settings)
    await k.admin.fault("/v1/attachments/*", status=404)
    with raises(SettingsNetworkError, "404"):
        await settings.attachment(k.collection, record)


async def case_33_stored_attachment_needs_no_request_and_a_corrupt_one_is_replaced(k: Kinto) -> None:
    await k.admin.attach(k.collection, "a", "ort.wasm", WASM)
    settings = k.client()
    record = await only_record(k, settings)
    key = await settings.attachment(k.collection, record)
    await k.admin.mend()
    assert await settings.attachment(k.collection, record) == key
    assert await k.admin.requests() == []
    writer = await k.platform.blobs.open_writer(key)
    await writer.write(b"?" * len(WASM))
    await writer.commit({})
    assert await settings.attachment(k.collection, record) == key
    assert await k.platform.blobs.read(key) == WASM


async def case_34_attachment_goes_with_its_record(k: Kinto) -> None:
    async def stored() -> list[str]:
        infos = await k.platform.blobs.list("attachment")
        return [info.key.revision for info in infos if info.key.owner.endswith(f"/{k.collection}")]

    for name in ("deleted", "kept", "updated"):
        await k.admin.attach(k.collection, name, "ort.wasm", WASM + name.encode())
    settings = k.client()
    for record in await settings.get(k.collection):
        await settings.attachment(k.collection, record)
    assert await stored() == ["deleted", "kept", "updated"]
    await k.admin.delete(k.collection, "deleted")
    await k.admin.attach(k.collection, "updated", "ort.wasm", WASM + b"new")
    await settings.sync(k.collection)
    assert await stored() == ["kept"]
    await settings.prune_attachments(k.collection)
    assert await stored() == ["kept"]


async def case_35_root_tells_where_attachments_are(k: Kinto) -> None:
    await k.admin.attach(k.collection, "a", "ort.wasm", WASM)
    settings = k.client()
    record = await only_record(k, settings)
    root = f"settings-root/{k.admin.url}"
    for base, works in ((f"{k.admin.url}/attachments", True), ("attachments/", True), ("ftp://x/", False), ("", False)):
        await k.platform.documents.delete(root)
        await k.admin.mend()
        body = json.dumps({"capabilities": {"attachments": {"base_url": base}}})
        await k.admin.fault("/v1/", body=body)
        if works:
            key = await settings.attachment(k.collection, record)
            await k.platform.blobs.delete([key])
        else:
            with raises(SettingsResponseError, "base_url"):
                await settings.attachment(k.collection, record)
    await k.platform.documents.delete(root)
    # A server that has moved its files since is asked once more.
    moved = {"attachmentsBase": f"{k.admin.url}/moved/", "chainsBase": None}
    await k.platform.documents.put(root, moved)
    await k.admin.mend()
    await settings.attachment(k.collection, record)
    assert len(await k.admin.requests("GET /v1/moved/")) == 1


async def case_36_paths_that_lead_elsewhere_are_refused(k: Kinto) -> None:
    good = {"filename": "a.wasm", "location": "x/a.wasm", "size": 4, "hash": "0" * 64, "mimetype": "x/y"}
    settings = k.client()
    await k.admin.mend()
    for fields in (
        {"location": "../../secret"},
        {"location": "/etc/passwd"},
        {"location": "https://evil.example/a.wasm"},
        {"location": "a/..%2f..%2fb"},
        {"location": "a\\..\\b"},
        {"filename": "../a.wasm"},
        {"filename": ".."},
        {"filename": "a/b.wasm"},
        {"filename": ""},
        {"size": -1},
        {"hash": "g" * 64},
    ):
        with raises(AttachmentError, k.collection, "not usable"):
            await settings.attachment(k.collection, {"id": "a", "attachment": {**good, **fields}})
    assert await k.admin.requests() == []


async def case_37_bundle_brings_all_attachments_that_fit(k: Kinto) -> None:
    for name in ("a", "b"):
        await k.admin.attach(k.collection, name, "ort.wasm", WASM + name.encode())
    await k.put("c")
    settings = k.client()
    await settings.sync(k.collection)
    with raises(AttachmentError, "no bundle"):
        await settings.fetch_bundle(k.collection)
    for wish, count in (("missing", None), ("corrupt", 0), (True, 2)):
        await k.change(test_bundle=wish)
        await k.admin.resign(k.collection)
        await settings.sync(k.collection)
        if count is None:
            with raises(SettingsNetworkError, "404"):
                await settings.fetch_bundle(k.collection)
        else:
            assert await settings.fetch_bundle(k.collection) == count
    await k.admin.mend()
    for record in await settings.get(k.collection):
        if "attachment" in record:
            await settings.attachment(k.collection, record)
    assert await k.admin.requests() == []
    await k.admin.fault("/v1/attachments/bundles/*", body="no archive")
    with raises(AttachmentError, "no ZIP file"):
        await settings.fetch_bundle(k.collection)


# Records


async def case_38_filters_decide_which_records_are_seen(k: Kinto) -> None:
    expressions: dict[str, tuple[Any, bool]] = {
        "none": (None, True),
        "empty": ("", True),
        "false": ("false", False),
        "error": ("env.version ==== 1", False),
        "no-transform": ("env.version|shout", False),
        "number": ("1", True),
        "zero": ("0", False),
        "text": ('"yes"', True),
        "newline": ('env.version|versionCompare("0.0.1") >= 0\n  && true', True),
        "missing": ("env.missing.deep == null", True),
        "not-a-text": (5, False),
        "older": ('"5.0a1"|versionCompare("5.0") < 0', True),
        "padded": ('"5"|versionCompare("5.0.0") == 0', True),
        "wild": ('"5.*"|versionCompare("5.99") > 0', True),
        "plus": ('"5.0+"|versionCompare("5.1pre") == 0', True),
        "platform": ('env.platform in ["browser", "native"]', True),
    }
    for name, (expression, _) in expressions.items():
        await k.put(name, **({} if expression is None else {"filter_expression": expression}))
    seen = ids(await k.client().get(k.collection))
    assert seen == sorted(name for name, (_, visible) in expressions.items() if visible), seen


async def case_39_changed_surroundings_filter_anew_without_a_request(k: Kinto) -> None:
    await k.put("de", filter_expression='env.country == "DE"')
    await k.put("all")
    settings = k.client(filter_values={"country": "FR"})
    assert ids(await settings.get(k.collection)) == ["all"]
    await k.admin.mend()
    settings.filter_values["country"] = "DE"
    assert ids(await settings.get(k.collection)) == ["all", "de"]
    assert await k.admin.requests() == []


async def case_40_runtime_is_the_highest_version_of_the_own_major(k: Kinto) -> None:
    for number, version in enumerate(("4.9", "5.0a1", "5.0", "5.1", "6.0a1", "6.0")):
        await k.put(f"r{number}", name="ort.wasm", version=version, release="v5.7.0")
    await k.put("other", name="other.wasm", version="5.9", release="v5.7.0")
    settings = k.client()
    assert select_runtime(await settings.get(k.collection), name="ort.wasm", version="5.7.0")["version"] == "5.1"
    await k.put("r9", name="ort.wasm", release="v5.7.0")
    await settings.sync(k.collection)
    with raises(NoMatchingRecordError, "r9", "version"):
        select_runtime(await settings.get(k.collection), name="ort.wasm", version="5.7.0")


async def case_41_options_are_found_by_feature_then_task_then_model(k: Kinto) -> None:
    await k.put("a", featureId="alt-text", taskName="image-to-text", modelId="m/1")
    await k.put("b", taskName="feature-extraction", modelId="m/2")
    await k.put("c", taskName="feature-extraction", modelId="m/3")
    records = await k.client().get(k.collection)

    def chosen(**wanted: str) -> str | None:
        found = select_options(records, **wanted)
        return None if found is None else found["id"]

    assert chosen(feature_id="alt-text") == "a"
    assert chosen(task_name="image-to-text") == "a"
    assert chosen(task_name="feature-extraction", model_id="m/3") == "c"
    assert chosen(feature_id="nobody", task_name="image-to-text") == "a"
    assert chosen(task_name="nothing") is None
    with raises(NoMatchingRecordError, "b", "c"):
        chosen(task_name="feature-extraction")


async def case_42_packaged_records_serve_when_there_is_nothing_better(k: Kinto) -> None:
    await k.put("server")

    def dump(timestamp: int) -> Callable[[str, str], Dump]:
        return lambda bucket, collection: Dump(timestamp, {"dump": {"id": "dump", "last_modified": timestamp}})

    # The server comes first, and the package when it does not help.
    older = k.client(read_dump=dump(1))
    assert ids(await older.get(k.collection)) == ["server"]
    await k.platform.documents.delete(k.document)
    await k.change(test_signatures="garbage")
    assert ids(await older.get(k.collection)) == ["dump"]
    with raises(SignatureError):
        await older.sync(k.collection)
    assert ids(await older.get(k.collection, sync_if_empty=False)) == ["dump"]
    with raises(SignatureError):
        await k.client().get(k.collection)
    assert await k.client().get(k.collection, sync_if_empty=False) == []
    await k.change(test_signatures=None)
    # A package that is newer than the last visit counts, until the server is newer still.
    await older.sync(k.collection)
    future = int(k.platform.now() * 1000) + 3_600_000
    newer = k.client(read_dump=dump(future))
    assert ids(await newer.get(k.collection)) == ["dump"]
    await k.put("more")
    with raises(StaleSettingsError, k.collection):
        await newer.sync(k.collection)
    assert ids(await newer.get(k.collection)) == ["dump"]


async def servers_of_other_origins_are_never_trusted_without_signatures(k: Kinto) -> None:
    unsigned = Trust(unsigned=True)
    with raises(OptionsError, "allowUnsignedSettings"):
        RemoteSettings(k.platform, "https://settings.example/v1", trust=unsigned)
    if k.platform.environment.name == "browser":
        with raises(OptionsError, "own origin"):
            k.client(trust=unsigned)
    else:
        await k.change(test_signatures="none")
        await k.put("a")
        assert ids(await k.client(trust=unsigned).get(k.collection)) == ["a"]
        # Once signatures are asked for, what came without does not count.
        assert await k.client().get(k.collection, sync_if_empty=False) == []


async def forget_backoff(k: Kinto) -> None:
    await k.platform.documents.delete(f"settings-backoff/{k.admin.url}")


CONTRACT: tuple[Callable[[Kinto], Awaitable[None]], ...] = tuple(
    value for name, value in sorted(globals().items()) if name.startswith(("case_", "servers_"))
)
