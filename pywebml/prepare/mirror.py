"""A static mirror of a Remote Settings server, in the server's own URL layout, for any static host.

    {mirror}/index.html                                                   answer of the server's root (`GET {server}/`)
    {mirror}/buckets/monitor/collections/changes/changeset                which collections changed when
    {mirror}/buckets/{bucket}/collections/{collection}/changeset          all records of a collection
    {mirror}/attachments/{bucket}-workspace/{collection}/{uuid}{suffix}   files of records
    {mirror}/chains/{name}.pem                                            the signer's certificates, leaf first

Static hosts pass over query strings, so `_expected` and `_since` always get the full answer. They answer a folder with
its `index.html`, so the root's JSON has that name, whatever content type it gets. `attachments.base_url` is relative
to the root, and so is `x5u` to `changes.certs_chains_base_url`, so that a mirror works at any address.

Source: Remote Settings client specification (changeset, monitor, attachments).
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pywebml.errors import RecordError
from pywebml.prepare.layout import folder_in_one_step, sha256_of

if TYPE_CHECKING:
    from pywebml.prepare.signing import Signer

Json: TypeAlias = "bool | int | str | Sequence[Json] | Mapping[str, Json] | None"
"""What a record may hold. No floats: signers and clients write them differently, so signatures would not verify."""

NAMESPACE = uuid.UUID("5d1f0a4e-6e0b-5c52-9f0e-3f1d0c6b7a10")
"""Of the version-5 identifiers of records, collections and attachments."""
MAX_INTEGER = 2**53 - 1
"""Larger ones change in JavaScript."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_MIME_TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+-]+")
_CHAINS = "chains"
_OWN_FIELDS = ("id", "last_modified", "attachment", "deleted")


@dataclass(frozen=True, slots=True)
class MirrorAttachment:
    """The file of a record.

    Attributes:
        source: Where its bytes are now.
        mimetype: Such as `application/wasm`.
        filename: What clients call it; default the source's name.
    """

    source: Path
    mimetype: str
    filename: str = ""


@dataclass(frozen=True, slots=True)
class MirrorCollection:
    """One collection.

    Attributes:
        bucket: Such as `main`.
        collection: Such as `ml-onnx-runtime`.
        timestamp: Milliseconds since the epoch; must grow whenever anything in the collection changes, because clients
            take a set with a smaller one for a stale copy.
        records: Key to fields, newest first. The key makes the record's id and stays the same when fields change.
        attachments: Key of a record to its file.
    """

    bucket: str
    collection: str
    timestamp: int
    records: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    attachments: Mapping[str, MirrorAttachment] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PublishedCollection:
    """A collection as clients get it.

    Attributes:
        bucket: Such as `main`.
        collection: Such as `ml-onnx-runtime`.
        timestamp: Milliseconds since the epoch.
        records: Complete, with `id`, `last_modified` and `attachment`.
        files: `location` of an attachment to where its bytes are now.
        signatures: Entries of `metadata.signatures`.
    """

    bucket: str
    collection: str
    timestamp: int
    records: Sequence[Mapping[str, Json]]
    files: Mapping[str, Path] = field(default_factory=dict)
    signatures: Sequence[Mapping[str, str]] = ()


def write_mirror(mirror_dir: Path, collections: Sequence[MirrorCollection], signer: Signer | None = None) -> None:
    """Write a mirror in one step, replacing the one that is there. The same collections give the same bytes.

    Args:
        mirror_dir: The server's root, such as `dist/v1`.
        collections: At least what the clients ask for; a collection without records answers with an empty set.
        signer: Signs each of them. Without one, clients must be told to do without signatures.

    Raises:
        RecordError: A record or an attachment cannot be published.
        PrepareError: The disk failed.
    """
    published = [publish(collection) for collection in collections]
    chains: dict[str, bytes] = {}
    if signer is not None:
        published = [signed(collection, signer) for collection in published]
        chains = {chain_name(signer): signer.chain_pem}
    write_published(mirror_dir, published, chains)


def write_published(mirror_dir: Path, collections: Sequence[PublishedCollection], chains: Mapping[str, bytes]) -> None:
    """Write a mirror in one step, replacing the one that is there.

    Args:
        mirror_dir: The server's root.
        collections: Signed or not.
        chains: `x5u` to PEM.

    Raises:
        RecordError: A name cannot be published.
        PrepareError: The disk failed.
    """
    names = [(collection.bucket, collection.collection) for collection in collections]
    for bucket, name in names:
        check_names(bucket, name)
        if names.count((bucket, name)) > 1:
            raise _refuse(name, f"'{bucket}/{name}' is there twice")
    with folder_in_one_step(mirror_dir) as root:
        changes: list[dict[str, Json]] = []
        for x5u, pem in chains.items():
            (root / _CHAINS).mkdir(exist_ok=True)
            (root / _CHAINS / x5u).write_bytes(pem)
        for collection in collections:
            for location, source in collection.files.items():
                target = root / "attachments" / location
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            signatures = [dict(entry) for entry in collection.signatures]
            _write_changeset(
                root,
                collection.bucket,
                collection.collection,
                collection.timestamp,
                collection.records,
                {
                    "id": collection.collection,
                    "bucket": collection.bucket,
                    "last_modified": collection.timestamp,
                    "signatures": signatures,
                    **({"signature": signatures[0]} if signatures else {}),
                    # A host of plain files answers `_since` with everything; this says so, and clients drop the rest.
                    "complete": True,
                },
            )
            changes.append(
                {
                    "id": _identifier("collection", collection.bucket, collection.collection),
                    "last_modified": collection.timestamp,
                    "bucket": collection.bucket,
                    "collection": collection.collection,
                    "host": "",
                }
            )
        latest = max((collection.timestamp for collection in collections), default=0)
        _write_changeset(root, "monitor", "changes", latest, changes, {})
        _write(root / "index.html", _root_answer())


def signed(collection: PublishedCollection, signer: Signer) -> PublishedCollection:
    """The collection with one signature. Raises `RecordError` when it cannot be signed."""
    entry = signer.entry(collection.records, collection.timestamp, chain_name(signer), collection=collection.collection)
    return replace(collection, signatures=(entry,))


def chain_name(signer: Signer) -> str:
    """The `x5u` of a signer's chain, relative to where the mirror keeps them.

    Named after its bytes: a renewed leaf gets a new address, so that no cache serves the old one.
    """
    return f"{hashlib.sha256(signer.chain_pem).hexdigest()[:32]}.pem"


def check_names(bucket: str, collection: str) -> None:
    """Raise `RecordError` for names that cannot be part of an address."""
    if not _IDENTIFIER.fullmatch(bucket) or not _IDENTIFIER.fullmatch(collection):
        raise _refuse(
            collection, f"'{bucket}/{collection}' is not a bucket and a collection of letters, digits, '_' and '-'"
        )


def write_dump(folder: Path, collection: MirrorCollection) -> None:
    """Write `{folder}/{bucket}/{collection}.json`, what a package brings along for the first visit without a network.

    Raises:
        RecordError: A record or an attachment cannot be published.
    """
    write_dump_of(folder, publish(collection))


def write_dump_of(folder: Path, published: PublishedCollection) -> None:
    """The same, of a collection as clients get it."""
    target = folder / published.bucket / f"{published.collection}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"data": list(published.records), "timestamp": published.timestamp}, indent=2, sort_keys=True)
    target.write_text(f"{text}\n", encoding="utf-8")


def _root_answer() -> Json:
    return {
        "project_name": "Remote Settings mirror",
        "project_version": "1",
        "http_api_version": "1.22",
        "url": "./",
        "settings": {"readonly": True},
        "capabilities": {
            "attachments": {"description": "Files of records", "url": "", "base_url": "attachments/"},
            "changes": {"description": "Signed collections", "url": "", "certs_chains_base_url": f"{_CHAINS}/"},
        },
    }


def _write_changeset(
    root: Path,
    bucket: str,
    collection: str,
    timestamp: int,
    changes: Sequence[Mapping[str, Json]],
    metadata: Mapping[str, Json],
) -> None:
    newest_first = sorted(changes, key=lambda change: (-_integer(change["last_modified"]), str(change["id"])))
    folder = root / "buckets" / bucket / "collections" / collection
    folder.mkdir(parents=True)
    _write(folder / "changeset", {"metadata": metadata, "timestamp": timestamp, "changes": newest_first})


def publish(collection: MirrorCollection) -> PublishedCollection:
    """What clients get of a collection, not signed yet. Raises `RecordError`."""
    name = collection.collection
    if not len(collection.records) <= collection.timestamp <= MAX_INTEGER:
        raise _refuse(name, f"the timestamp {collection.timestamp} is not in milliseconds since the epoch")
    unknown = sorted(set(collection.attachments) - set(collection.records))
    if unknown:
        raise _refuse(name, f"there are attachments for {', '.join(unknown)}, but no such records")
    records: list[dict[str, Json]] = []
    files: dict[str, Path] = {}
    for index, (key, fields) in enumerate(collection.records.items()):
        check_fields(fields, f"record '{key}'", name)
        record: dict[str, Json] = {
            **fields,
            "id": _identifier("record", collection.bucket, name, key),
            # A server never gives two records of a collection the same one.
            "last_modified": collection.timestamp - index,
        }
        if key in collection.attachments:
            attachment = collection.attachments[key]
            description = describe_attachment(collection.bucket, name, attachment)
            record["attachment"] = description
            files[str(description["location"])] = attachment.source
        records.append(record)
    return PublishedCollection(collection.bucket, name, collection.timestamp, records, files)


def check_fields(fields: Mapping[str, Json], where: str, collection: str) -> None:
    """Raise `RecordError` for fields that a record's owner cannot set, or that JSON or a signature cannot hold."""
    for own in _OWN_FIELDS:
        if own in fields:
            raise _refuse(collection, f"{where} has the field '{own}', which the mirror sets itself")
    _check_json(fields, where, collection)


def describe_attachment(bucket: str, collection: str, attachment: MirrorAttachment) -> dict[str, Json]:
    """A record's `attachment`. Raises `RecordError`."""
    filename = attachment.filename or attachment.source.name
    if not _FILE_NAME.fullmatch(filename) or ".." in filename:
        raise _refuse(collection, f"'{filename}' cannot be an attachment's file name")
    if not _MIME_TYPE.fullmatch(attachment.mimetype):
        raise _refuse(collection, f"'{attachment.mimetype}' is not a MIME type")
    if not attachment.source.is_file():
        raise _refuse(collection, f"there is no file {attachment.source} to attach")
    digest = sha256_of(attachment.source)
    # Named after its bytes: a replaced attachment gets a new address, so that no cache serves the old one.
    unique = _identifier("attachment", bucket, collection, digest)
    return {
        "hash": digest,
        "size": attachment.source.stat().st_size,
        "filename": filename,
        "location": f"{bucket}-workspace/{collection}/{unique}{Path(filename).suffix}",
        "mimetype": attachment.mimetype,
    }


def _check_json(value: object, where: str, collection: str) -> None:
    """Refuse what does not keep its value, or its canonical form, on the way to a client."""
    if isinstance(value, float):
        raise _refuse(collection, f"{where} holds the float {value!r}; give whole numbers or texts")
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise _refuse(collection, f"{where} holds {value}, which is beyond ±2^53")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _refuse(collection, f"{where} has the key {key!r}; keys are texts")
            _check_json(item, f"{where}, '{key}'", collection)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(item, where, collection)
    elif not isinstance(value, str | int | None):
        raise _refuse(collection, f"{where} holds {type(value).__name__}, which JSON has not")


def _refuse(collection: str, reason: str) -> RecordError:
    return RecordError(f"Collection {collection} cannot be published: {reason}.", collection=collection)


def _identifier(*parts: str) -> str:
    return str(uuid.uuid5(NAMESPACE, "/".join(parts)))


def _integer(value: Json) -> int:
    assert isinstance(value, int)
    return value


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")


DEMO_EDITION = 1
"""Raise it when a record of the demo changes."""
_DEMO_EPOCH_MS = 1_760_000_000_000


def write_demo_mirror(mirror_dir: Path, runtime_wasm: Path, runtime_version: str, signer: Signer | None = None) -> None:
    """Write the mirror that the demo reads.

    Args:
        mirror_dir: The server's root, such as `dist/v1`.
        runtime_wasm: ONNX Runtime's WASM file.
        runtime_version: Its version, such as `1.30.0`.
        signer: Of the collections.

    Raises:
        RecordError: The file is missing, or the version is none.
        PrepareError: The disk failed.
    """
    write_mirror(mirror_dir, demo_collections(runtime_wasm, runtime_version), signer)


def demo_collections(runtime_wasm: Path, runtime_version: str) -> list[MirrorCollection]:
    """The runtime, the options of the demo's task, and an empty allow and deny list. Raises `RecordError`."""
    timestamp = _demo_timestamp(runtime_version)
    runtime = MirrorCollection(
        bucket="main",
        collection="ml-onnx-runtime",
        timestamp=timestamp,
        records={
            runtime_wasm.name: {
                "name": runtime_wasm.name,
                "version": runtime_version,
                "release": f"v{runtime_version}",
                "revision": f"v{runtime_version}",
                "license": "MIT",
                "filter_expression": "",
            }
        },
        attachments={runtime_wasm.name: MirrorAttachment(runtime_wasm, "application/wasm")},
    )
    options = MirrorCollection(
        bucket="main",
        collection="ml-inference-options",
        timestamp=timestamp,
        records={
            "sentence-similarity": {
                "featureId": "sentence-similarity",
                "taskName": "feature-extraction",
                "modelId": "sentence-transformers/all-MiniLM-L6-v2",
                "modelRevision": "v1.0.0",
                "tokenizerId": "sentence-transformers/all-MiniLM-L6-v2",
                "tokenizerRevision": "v1.0.0",
                "dtype": "q8",
                "filter_expression": "",
            }
        },
    )
    policy = MirrorCollection(bucket="main", collection="ml-model-allow-deny-list", timestamp=timestamp)
    return [runtime, options, policy]


def _demo_timestamp(runtime_version: str) -> int:
    """Grows with the runtime's version and with `DEMO_EDITION`, and depends on nothing else."""
    match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})", runtime_version)
    if match is None:
        raise _refuse("ml-onnx-runtime", f"'{runtime_version}' is not a version such as 1.30.0")
    major, minor, patch = (int(part) for part in match.groups())
    return _DEMO_EPOCH_MS + ((DEMO_EDITION * 1000 + major) * 1000 + minor) * 1000 + patch
