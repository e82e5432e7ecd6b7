"""What is kept of a collection: between visits, and in the package for the first visit without a network."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pywebml.errors import SettingsResponseError
from pywebml.settings.protocol import parse_changeset


@dataclass(frozen=True, slots=True)
class StoredCollection:
    """A collection as it was last accepted.

    Attributes:
        timestamp: Of the collection, in milliseconds.
        records: By id, unfiltered.
        metadata: With the signatures.
        chains: The certificate chains behind the signatures, PEM, by `x5u`.
        verified: When the signature was checked, seconds since the epoch; None when that was not asked for.
        root_sha256: Under which root it was good; empty when that was not asked for.
    """

    timestamp: int
    records: Mapping[str, dict[str, Any]]
    metadata: Mapping[str, Any]
    chains: Mapping[str, str]
    verified: float | None
    root_sha256: str

    def to_document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "timestamp": self.timestamp,
            "records": dict(self.records),
            "metadata": dict(self.metadata),
            "chains": dict(self.chains),
            "verified": self.verified,
            "rootSha256": self.root_sha256,
        }

    @classmethod
    def from_document(cls, document: object) -> StoredCollection | None:
        """From `to_document`; None for anything else, whoever wrote it."""
        if not isinstance(document, dict):
            return None
        timestamp, records, metadata = (document.get(name) for name in ("timestamp", "records", "metadata"))
        chains, verified, root = (document.get(name) for name in ("chains", "verified", "rootSha256"))
        if type(timestamp) is not int or not isinstance(records, dict) or not isinstance(metadata, dict):
            return None
        if not isinstance(chains, dict) or not all(isinstance(chain, str) for chain in chains.values()):
            return None
        if (verified is not None and type(verified) not in {int, float}) or not isinstance(root, str):
            return None
        for name, record in records.items():
            if not isinstance(record, dict) or record.get("id") != name or type(record.get("last_modified")) is not int:
                return None
        return cls(timestamp, records, metadata, chains, verified, root)


@dataclass(frozen=True, slots=True)
class Dump:
    """A collection that came with the package, and is trusted as the package is.

    Attributes:
        timestamp: Of the collection, in milliseconds.
        records: By id.
    """

    timestamp: int
    records: Mapping[str, dict[str, Any]]


def parse_dump(data: bytes, name: str) -> Dump:
    """A dump as Remote Settings has them: `{"data": [records], "timestamp": n}`.

    Raises:
        SettingsResponseError: It is none.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise SettingsResponseError(f"{name} is no dump of a collection.", url=name)
    changes: dict[str, Any] = {"timestamp": values.get("timestamp"), "changes": values.get("data"), "metadata": {}}
    changeset = parse_changeset(json.dumps(changes).encode(), name)
    return Dump(changeset.timestamp, {record["id"]: record for record in changeset.changes})


def packaged_dump(bucket: str, collection: str) -> Dump | None:
    """The dump in the package, or None."""
    file = importlib.resources.files("pywebml.settings").joinpath("dumps", bucket, f"{collection}.json")
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_dump(data, f"{bucket}/{collection}.json")
