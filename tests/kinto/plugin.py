"""Kinto plugin: changesets, the monitor, signatures, chains, attachments, bundles.

Written from the Remote Settings client specification; faults of the network are in `tests.kinto.faults`. How a collection is answered can be chosen with attributes of the
collection, set as its owner sets any other:

    test_signers     names of `tests.chains` that sign, in this order (default: good)
    test_signatures  none | empty | garbage | truncated | unknown_mode_first | empty_x5u | missing_chain
    test_tamper      fields that every record gets after signing
    test_drop        id of a record that goes missing after signing
    test_shift       milliseconds that the timestamp is moved after signing
    test_replay      name of another collection whose signed set is answered
    test_snapshot    name of a snapshot (`POST …/__snapshot__`) that is answered instead of what is true now
    test_since       full (307 to the whole set, without tombstones) | refused (400)
    test_bundle      whether the collection says that it has a bundle; `corrupt` and `missing` say so and lie
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from kinto.core.errors import raise_invalid
from kinto.core.storage import Filter
from kinto.core.utils import COMPARISON
from kinto.events import ServerFlushed
from pyramid.events import ContextFound
from pyramid.httpexceptions import HTTPNotFound, HTTPTemporaryRedirect
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED

from tests.chains import Chains


class State:
    """What belongs to one server."""

    def __init__(self, base_url: str, attachments: Path, chains: Future[Chains]) -> None:
        self.base_url = base_url
        self.attachments = attachments
        self.snapshots: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._chains = chains

    @property
    def chains(self) -> Chains:
        """Made while Kinto starts."""
        return self._chains.result()


def includeme(config: Any) -> None:
    """Kinto calls this."""
    settings = config.get_settings()
    state = State(settings["test.base_url"], Path(settings["test.attachments"]), settings["test.chains"])
    config.registry.rs_state = state
    collection = "/buckets/{bucket}/collections/{collection}"
    for name, path, method, view in (
        ("monitor", "/buckets/monitor/collections/changes/changeset", "GET", monitor),
        ("changeset", f"{collection}/changeset", "GET", changeset),
        ("resign", f"{collection}/__resign__", "POST", resign),
        ("snapshot", f"{collection}/__snapshot__", "POST", snapshot),
        ("chain", "/chains/{name}.pem", "GET", chain),
        ("bundle", "/attachments/bundles/{bucket}--{collection}.zip", "GET", bundle),
    ):
        config.add_route(f"rs-{name}", path)
        config.add_view(
            view, route_name=f"rs-{name}", request_method=method, renderer="json", permission=NO_PERMISSION_REQUIRED
        )
    config.add_static_view("attachments", str(state.attachments), permission=NO_PERMISSION_REQUIRED)
    config.add_subscriber(refuse_fractions, ContextFound)
    config.add_subscriber(lambda event: state.snapshots.clear(), ServerFlushed)
    config.include("tests.kinto.faults")


def refuse_fractions(event: Any) -> None:
    """Records with floats cannot be signed, so that no server takes them."""
    request = event.request
    if request.method not in {"POST", "PUT", "PATCH"} or "/records" not in request.path:
        return
    try:
        written = request.json_body if request.content_type.endswith("json") else json.loads(request.POST["data"])
    except (ValueError, KeyError):
        # Kinto itself says what is wrong.
        return
    if _has_fraction(written):
        raise_invalid(request, location="body", name="data", description="a record may not have floats")


def _has_fraction(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_fraction, value.values()))
    return any(map(_has_fraction, value)) if isinstance(value, list) else isinstance(value, float)


def _parent(bucket: str, collection: str) -> str:
    return f"/buckets/{bucket}/collections/{collection}"


def _metadata(request: Any, bucket: str, collection: str) -> dict[str, Any]:
    for found in request.registry.storage.list_all("collection", f"/buckets/{bucket}"):
        if found["id"] == collection:
            return dict(found)
    raise HTTPNotFound(f"{bucket}/{collection}")


def _timestamp_in(request: Any, name: str, *, required: bool = False) -> int | None:
    text = request.GET.get(name)
    if text is None and not required:
        return None
    plain = (text or "").removeprefix('"').removesuffix('"')
    if not (plain.isascii() and plain.isdigit()):
        raise_invalid(request, location="querystring", name=name, description="must be a timestamp")
    return int(plain)


def monitor(request: Any) -> dict[str, Any]:
    """Which collections changed when."""
    _timestamp_in(request, "_expected", required=True)
    since = _timestamp_in(request, "_since") or 0
    storage = request.registry.storage
    changes = []
    for bucket in storage.list_all("bucket", ""):
        for found in storage.list_all("collection", f"/buckets/{bucket['id']}"):
            stamp = storage.resource_timestamp("record", _parent(bucket["id"], found["id"]))
            wanted = (request.GET.get("bucket", bucket["id"]), request.GET.get("collection", found["id"]))
            if stamp > since and wanted == (bucket["id"], found["id"]):
                changes.append(
                    {
                        "id": f"{bucket['id']}-{found['id']}",
                        "last_modified": stamp,
                        "bucket": bucket["id"],
                        "collection": found["id"],
                        "host": "127.0.0.1",
                    }
                )
    changes.sort(key=lambda change: -change["last_modified"])
    return {"metadata": {}, "timestamp": changes[0]["last_modified"] if changes else 0, "changes": changes}


def changeset(request: Any) -> dict[str, Any]:
    """The signed changes of a collection."""
    bucket, collection = request.matchdict["bucket"], request.matchdict["collection"]
    expected = _timestamp_in(request, "_expected", required=True)
    since = _timestamp_in(request, "_since")
    found = _metadata(request, bucket, collection)
    if since is not None and found.get("test_since") == "refused":
        raise_invalid(request, location="querystring", name="_since", description="is too old")
    if since is not None and found.get("test_since") == "full":
        address = f"{_state(request).base_url}{_parent(bucket, collection)}/changeset"
        raise HTTPTemporaryRedirect(f"{address}?_expected={expected}")
    if "test_snapshot" in found:
        return copy.deepcopy(_state(request).snapshots[bucket, collection, found["test_snapshot"]])
    if "test_replay" in found:
        return _answer(request, bucket, found["test_replay"], None, {})
    return _answer(request, bucket, collection, since, found)


def _answer(request: Any, bucket: str, collection: str, since: int | None, wishes: Mapping[str, Any]) -> dict[str, Any]:
    storage = request.registry.storage
    parent = _parent(bucket, collection)
    timestamp = storage.resource_timestamp("record", parent)
    records = storage.list_all("record", parent)
    changes = records
    if since is not None:
        newer = [Filter("last_modified", since, COMPARISON.GT)]
        changes = storage.list_all("record", parent, filters=newer, include_deleted=True)
    changes = sorted((dict(change) for change in changes), key=lambda change: -change["last_modified"])
    found = _metadata(request, bucket, collection)
    signatures = _signatures(_state(request), records, timestamp, collection, wishes)
    metadata = {
        "schema": {},
        "sort": "-last_modified",
        "displayFields": [],
        **{name: value for name, value in found.items() if not name.startswith("test_")},
        "bucket": bucket,
        "attachment": {"bundle": bool(wishes.get("test_bundle"))},
    }
    if signatures is not None:
        metadata["signatures"] = signatures
        metadata["signature"] = signatures[0] if signatures else {}
    for change in changes:
        if not change.get("deleted"):
            change.update(wishes.get("test_tamper", {}))
    changes = [change for change in changes if change["id"] != wishes.get("test_drop")]
    request.response.last_modified = timestamp / 1000
    return {"metadata": metadata, "timestamp": timestamp + wishes.get("test_shift", 0), "changes": changes}


def _signatures(
    state: State, records: Any, timestamp: int, collection: str, wishes: Mapping[str, Any]
) -> list[dict[str, str]] | None:
    fault = wishes.get("test_signatures")
    if fault == "none":
        return None
    entries = []
    for name in wishes.get("test_signers", ["good"]):
        # Keys of other kinds cannot sign at all; what counts there is the chain.
        signer = state.chains.signers["good" if name in {"wrong_curve", "root_alone"} else name]
        entries.append(signer.entry(records, timestamp, f"{state.base_url}/chains/{name}.pem", collection=collection))
    if fault == "empty":
        return []
    if fault == "garbage":
        entries[0]["signature"] = "A" * 128
    elif fault == "truncated":
        entries[0]["signature"] = entries[0]["signature"][:-4]
    elif fault == "unknown_mode_first":
        entries.insert(0, {**entries[0], "mode": "rs256"})
    elif fault == "empty_x5u":
        entries[0]["x5u"] = ""
    elif fault == "missing_chain":
        entries[0]["x5u"] = f"{state.base_url}/chains/nobody.pem"
    return entries


def chain(request: Any) -> Response:
    """A certificate chain."""
    signer = _state(request).chains.signers.get(request.matchdict["name"])
    if signer is None:
        raise HTTPNotFound
    return Response(body=signer.chain_pem, content_type="application/x-pem-file")


def bundle(request: Any) -> Response:
    """All attachments of a collection with their records."""
    state = _state(request)
    bucket, collection = request.matchdict["bucket"], request.matchdict["collection"]
    wish = _metadata(request, bucket, collection).get("test_bundle")
    if not wish or wish == "missing":
        raise HTTPNotFound
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for record in request.registry.storage.list_all("record", _parent(bucket, collection)):
            if "attachment" in record:
                data = (state.attachments / record["attachment"]["location"]).read_bytes()
                archive.writestr(record["id"], b"?" * len(data) if wish == "corrupt" else data)
                archive.writestr(f"{record['id']}.meta.json", json.dumps(dict(record)))
    return Response(body=buffer.getvalue(), content_type="application/zip")


def resign(request: Any) -> dict[str, Any]:
    """Move the timestamps without a change, as a renewed signature does."""
    bucket, collection = request.matchdict["bucket"], request.matchdict["collection"]
    storage = request.registry.storage
    found = _metadata(request, bucket, collection)
    del found["last_modified"]
    storage.update("collection", f"/buckets/{bucket}", collection, found)
    parent = _parent(bucket, collection)
    made = storage.create("record", parent, {"id": "resign"})
    storage.delete("record", parent, made["id"], with_deleted=False)
    return {"timestamp": storage.resource_timestamp("record", parent)}


def snapshot(request: Any) -> dict[str, Any]:
    """Keep what the collection answers now, under a name."""
    bucket, collection = request.matchdict["bucket"], request.matchdict["collection"]
    found = _metadata(request, bucket, collection)
    answer = _answer(request, bucket, collection, None, found)
    _state(request).snapshots[bucket, collection, request.json_body["name"]] = answer
    return {}


def _state(request: Any) -> State:
    state: State = request.registry.rs_state
    return state
