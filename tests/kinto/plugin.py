"""Kinto plugin: changesets, the monitor, signatures, chains, attachments, bundles; and faults on demand.

Written from the Remote Settings client specification. How a collection is answered can be chosen with attributes of the
collection, set as its owner sets any other:

    test_signers     names of `tests.chains` that sign, in this order (default: good)
    test_signatures  none | garbage | truncated | unknown_mode_first | empty_x5u | missing_chain
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
import fnmatch
import io
import json
import threading
import zipfile
from pathlib import Path
from typing import Any

from pyramid.httpexceptions import HTTPBadRequest, HTTPNotFound, HTTPTemporaryRedirect
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.tweens import INGRESS

from kinto.core.storage import Filter
from kinto.core.utils import COMPARISON
from tests.chains import Chains, make_chains

EXPOSED = "Backoff, Retry-After, Alert, Content-Length, Content-Type"
CONTROL = ("/v1/__faults__", "/v1/__requests__")


class State:
    """What belongs to one server."""

    def __init__(self, base_url: str, attachments: Path, chains: Chains) -> None:
        self.base_url = base_url
        self.attachments = attachments
        self.chains = chains
        self.faults: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self.snapshots: dict[tuple[str, str], dict[str, Any]] = {}
        self.lock = threading.Lock()


def includeme(config: Any) -> None:
    """Kinto calls this."""
    settings = config.get_settings()
    state = State(settings["test.base_url"], Path(settings["test.attachments"]), make_chains_of_now())
    config.registry.rs_state = state
    collection = "/buckets/{bucket}/collections/{collection}"
    for name, path, method, view in (
        ("monitor", "/buckets/monitor/collections/changes/changeset", "GET", monitor),
        ("changeset", f"{collection}/changeset", "GET", changeset),
        ("resign", f"{collection}/__resign__", "POST", resign),
        ("snapshot", f"{collection}/__snapshot__", "POST", snapshot),
        ("chain", "/chains/{name}.pem", "GET", chain),
        ("bundle", "/attachments/bundles/{bucket}--{collection}.zip", "GET", bundle),
        ("faults", "/__faults__", "POST", add_fault),
        ("mend", "/__mend__", "POST", mend),
        ("requests", "/__requests__", "GET", requests),
    ):
        config.add_route(f"rs-{name}", path)
        config.add_view(
            view, route_name=f"rs-{name}", request_method=method, renderer="json", permission=NO_PERMISSION_REQUIRED
        )
    config.add_static_view("attachments", str(state.attachments), permission=NO_PERMISSION_REQUIRED)
    config.add_tween("tests.kinto.plugin.tween", under=INGRESS)


def make_chains_of_now() -> Chains:
    """Certificates around the real clock, which the clients have."""
    import datetime

    return make_chains(datetime.datetime.now(datetime.UTC))


def tween(handler: Any, registry: Any) -> Any:
    """Outermost: the log, CORS and faults."""
    state: State = registry.rs_state

    def handle(request: Any) -> Any:
        if request.method == "OPTIONS":
            response = Response(status=200)
            response.headers["Access-Control-Allow-Methods"] = "GET, POST, PUT, PATCH, DELETE"
            response.headers["Access-Control-Allow-Headers"] = "Authorization, Content-Type"
            response.headers["Access-Control-Allow-Origin"] = "*"
            return response
        fault = None
        if not request.path.startswith("/v1/__"):
            with state.lock:
                state.requests.append(f"{request.method} {request.path_qs}")
                fault = _due(state.faults, request)
        response = _broken(fault, handler, request) if fault else handler(request)
        if not (fault and fault.get("no_cors")):
            response.headers["Access-Control-Allow-Origin"] = "*"
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response

    return handle


def _due(faults: list[dict[str, Any]], request: Any) -> dict[str, Any] | None:
    for fault in faults:
        if fault["times"] != 0 and request.method == "GET" and fnmatch.fnmatchcase(request.path, fault["path"]):
            fault["times"] -= 1
            return fault
    return None


def _broken(fault: dict[str, Any], handler: Any, request: Any) -> Any:
    if "status" in fault or "body" in fault:
        response = Response(status=fault.get("status", 200), body=fault.get("body", "{}").encode())
        response.content_type = fault.get("content_type", "application/json")
    else:
        response = handler(request)
        body = response.body
        if "flip" in fault:
            at = fault["flip"]
            response = Response(body=body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], headers=_kept(response))
        elif "shorter" in fault:
            response = Response(body=body[: -fault["shorter"]], headers=_kept(response))
        elif "cut" in fault:
            # A server that dies in the middle: the announced length is never reached.
            response = Response(app_iter=[body[: fault["cut"]]], headers=_kept(response))
            response.content_length = len(body)
    for name, value in fault.get("headers", {}).items():
        response.headers[name] = value
    if fault.get("no_cors"):
        for name in [name for name in response.headers if name.lower().startswith("access-control-")]:
            del response.headers[name]
    return response


def _kept(response: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in response.headerlist if name.lower() != "content-length"]


def _parent(bucket: str, collection: str) -> str:
    return f"/buckets/{bucket}/collections/{collection}"


def _metadata(request: Any, bucket: str, collection: str) -> dict[str, Any]:
    for found in request.registry.storage.list_all("collection", f"/buckets/{bucket}"):
        if found["id"] == collection:
            return dict(found)
    raise HTTPNotFound(f"{bucket}/{collection}")


def _timestamp_of(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    plain = text.strip('"')
    if not plain.isdigit():
        raise HTTPBadRequest(f"{name} must be a timestamp")
    return int(plain)


def monitor(request: Any) -> dict[str, Any]:
    """Which collections changed when."""
    if _timestamp_of(request.GET.get("_expected"), "_expected") is None:
        raise HTTPBadRequest("_expected is required")
    since = _timestamp_of(request.GET.get("_since"), "_since") or 0
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
    if _timestamp_of(request.GET.get("_expected"), "_expected") is None:
        raise HTTPBadRequest("_expected is required")
    since = _timestamp_of(request.GET.get("_since"), "_since")
    found = _metadata(request, bucket, collection)
    if since is not None and found.get("test_since") == "refused":
        raise HTTPBadRequest("_since is too old")
    if since is not None and found.get("test_since") == "full":
        query = f"_expected={request.GET['_expected']}"
        raise HTTPTemporaryRedirect(f"{_state(request).base_url}{_parent(bucket, collection)}/changeset?{query}")
    if "test_snapshot" in found:
        return copy.deepcopy(_state(request).snapshots[collection, found["test_snapshot"]])
    if "test_replay" in found:
        return _answer(request, bucket, found["test_replay"], None, {})
    return _answer(request, bucket, collection, since, found)


def _answer(request: Any, bucket: str, collection: str, since: int | None, wishes: dict[str, Any]) -> dict[str, Any]:
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
        "id": collection,
        "bucket": bucket,
        "last_modified": found["last_modified"],
        "schema": {},
        "sort": "-last_modified",
        "displayFields": [],
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
    state: State, records: Any, timestamp: int, collection: str, wishes: dict[str, Any]
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
    """Move the timestamp without a change, as a renewed signature does."""
    parent = _parent(request.matchdict["bucket"], request.matchdict["collection"])
    storage = request.registry.storage
    made = storage.create("record", parent, {"id": "resign"})
    storage.delete("record", parent, made["id"], with_deleted=False)
    return {"timestamp": storage.resource_timestamp("record", parent)}


def snapshot(request: Any) -> dict[str, Any]:
    """Keep what the collection answers now, under a name."""
    bucket, collection = request.matchdict["bucket"], request.matchdict["collection"]
    found = _metadata(request, bucket, collection)
    answer = _answer(request, bucket, collection, None, found)
    _state(request).snapshots[collection, request.json_body["name"]] = answer
    return {}


def add_fault(request: Any) -> dict[str, Any]:
    """Add a fault: `path` (shell pattern), `times` (default: always), and what to do."""
    with _state(request).lock:
        _state(request).faults.append({"times": -1, **request.json_body})
    return {}


def mend(request: Any) -> dict[str, Any]:
    """Forget faults and the log."""
    state = _state(request)
    with state.lock:
        state.faults.clear()
        state.requests.clear()
    return {}


def requests(request: Any) -> list[str]:
    """What was asked for since the log was emptied."""
    return list(_state(request).requests)


def _state(request: Any) -> State:
    state: State = request.registry.rs_state
    return state
