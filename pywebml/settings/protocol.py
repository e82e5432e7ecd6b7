"""The answers of a Remote Settings server, checked field by field.

Answers are judged by their bytes and not by their content type, since a mirror of plain files has none for
them. Source: mozilla/remote-settings, `docs/client-specifications.rst`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from pywebml.errors import AttachmentError, SettingsResponseError

_DEEPEST = 64
_LARGEST_TIMESTAMP = 2**53
_LONGEST_NAME = 512
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BRACKETS = re.compile(rb'[\[{]|[\]}]|"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Changeset:
    """Changes of a collection.

    Attributes:
        timestamp: Of the collection's newest change, in milliseconds.
        changes: Records, and `{"id", "last_modified", "deleted": true}` for those that are gone.
        metadata: Of the collection.
    """

    timestamp: int
    changes: list[dict[str, Any]]
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Root:
    """What a server's root says.

    Attributes:
        attachments_base: Where attachments are: absolute, with a slash at its end.
        chains_base: What a relative `x5u` is relative to, in the same form; None when the server does not say.
    """

    attachments_base: str
    chains_base: str | None

    def to_stored(self) -> dict[str, str | None]:
        """Plain data."""
        return {"attachmentsBase": self.attachments_base, "chainsBase": self.chains_base}

    @classmethod
    def from_stored(cls, value: object) -> Root | None:
        """From `to_stored`; None for anything else."""
        if not isinstance(value, dict):
            return None
        attachments, chains = value.get("attachmentsBase"), value.get("chainsBase")
        if not isinstance(attachments, str) or not isinstance(chains, str | None):
            return None
        return cls(attachments, chains)


@dataclass(frozen=True, slots=True)
class Attachment:
    """The file of a record.

    Attributes:
        filename: Its own name.
        location: Relative to the server's attachments.
        size: In bytes.
        sha256: Lower-case hexadecimal.
    """

    filename: str
    location: str
    size: int
    sha256: str


def parse_object(data: bytes, url: str) -> dict[str, Any]:
    """A JSON object. Raises `SettingsResponseError` for anything else."""
    if data.lstrip()[:1] == b"<":
        raise _wrong(url, "it is a web page: a login page, or a server that answers every address with its start page")
    depth = 0
    for match in _BRACKETS.finditer(data):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        if depth > _DEEPEST:
            raise _wrong(url, f"it is nested deeper than {_DEEPEST} levels")
    try:
        answer = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _wrong(url, f"it is no JSON ({error})") from error
    if not isinstance(answer, dict):
        raise _wrong(url, f"it is a JSON {type(answer).__name__} and no object")
    return answer


def parse_root(data: bytes, url: str) -> Root:
    """The answer of a server's root."""
    capabilities = parse_object(data, url).get("capabilities")
    if not isinstance(capabilities, dict):
        raise _wrong(url, "it has no object 'capabilities'")
    attachments = _base(capabilities, "attachments", "base_url", url)
    if attachments is None:
        raise _wrong(url, "capabilities.attachments.base_url is not there")
    return Root(attachments, _base(capabilities, "changes", "certs_chains_base_url", url))


def _base(capabilities: Mapping[str, Any], capability: str, field: str, url: str) -> str | None:
    """An address of the root, absolute and with a slash at its end; None when it has none."""
    values = capabilities.get(capability)
    base = values.get(field) if isinstance(values, dict) else None
    if base is None:
        return None
    try:
        absolute = urljoin(url, base) if isinstance(base, str) and base else ""
        parts = urlsplit(absolute)
        usable = parts.scheme in {"http", "https"} and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise _wrong(
            url, f"capabilities.{capability}.{field} is {str(base)[:200]!r}, which is no http or https address"
        )
    return absolute if absolute.endswith("/") else f"{absolute}/"


def parse_monitor(data: bytes, url: str, bucket: str, collection: str) -> int | None:
    """When a collection was last changed; None when the server does not list it."""
    answer = parse_object(data, url)
    for change in _changes(answer, url):
        if (change.get("bucket"), change.get("collection")) == (bucket, collection):
            return _timestamp(change.get("last_modified"), f"last_modified of {collection}", url)
    return None


def parse_changeset(data: bytes, url: str) -> Changeset:
    """The changes of a collection."""
    answer = parse_object(data, url)
    timestamp = _timestamp(answer.get("timestamp"), "timestamp", url)
    metadata = answer.get("metadata", {})
    if not isinstance(metadata, dict):
        raise _wrong(url, f"metadata is a {type(metadata).__name__} and no object")
    changes = _changes(answer, url)
    seen = set()
    for change in changes:
        record_id = change.get("id")
        if not isinstance(record_id, str) or not 0 < len(record_id) <= _LONGEST_NAME:
            raise _wrong(url, f"a record has the id {str(record_id)[:100]!r}")
        if record_id in seen:
            raise _wrong(url, f"the record {record_id!r} is there twice")
        seen.add(record_id)
        _timestamp(change.get("last_modified"), f"last_modified of {record_id!r}", url)
    return Changeset(timestamp, changes, metadata)


def parse_attachment(record: Mapping[str, Any], collection: str) -> Attachment:
    """A record's `attachment`. Raises `AttachmentError` when it has none that is usable."""
    value = record.get("attachment")
    fields = value if isinstance(value, dict) else {}
    filename, location = fields.get("filename"), fields.get("location")
    size, sha256 = fields.get("size"), fields.get("hash")
    what = ""
    if not isinstance(value, dict):
        what = "there is none"
    elif not _is_relative_path(filename) or "/" in str(filename):
        what = f"the filename {filename!r} is no plain name"
    elif not _is_relative_path(location):
        what = f"the location {location!r} is no relative path"
    elif type(size) is not int or not 0 < size <= _LARGEST_TIMESTAMP:
        what = f"the size is {size!r}"
    elif not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        what = f"the hash is {sha256!r} and no SHA-256"
    if what:
        raise AttachmentError(
            f"The attachment of record {record.get('id')!r} of {collection} is not usable: {what}. Correct the "
            "record on the settings server.",
            collection=collection,
            record=str(record.get("id")),
        )
    return Attachment(str(filename), str(location), int(size or 0), str(sha256))


def attachment_url(base: str, attachment: Attachment) -> str:
    """Where the bytes of an attachment are."""
    return base + quote(attachment.location, safe="/")


def _is_relative_path(path: object) -> bool:
    """Whether a path can only lead into the folder that it is joined to."""
    if not isinstance(path, str) or not 0 < len(path) <= _LONGEST_NAME:
        return False
    return path.isprintable() and all(
        segment not in {"", ".", ".."} and not set(segment) & set("\\:?#%") for segment in path.split("/")
    )


def _changes(answer: Mapping[str, Any], url: str) -> list[dict[str, Any]]:
    changes = answer.get("changes")
    if not isinstance(changes, list) or any(not isinstance(change, dict) for change in changes):
        raise _wrong(url, "it has no list 'changes' of objects")
    return changes


def _timestamp(value: object, what: str, url: str) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST_TIMESTAMP:
        raise _wrong(url, f"{what} is {value!r} and no time in milliseconds")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _wrong(url: str, what: str) -> SettingsResponseError:
    return SettingsResponseError(
        f"{url} did not answer as a Remote Settings server does: {what}. Check the address of the settings server.",
        url=url,
    )
