"""Looks at a settings server or mirror with a client's eyes: signatures, attachments, and what would be chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from pywebml.errors import (
    AttachmentError,
    NoMatchingRecordError,
    SettingsError,
    SettingsNetworkError,
    SignatureError,
)
from pywebml.settings import SIGNER_NAME, select_options
from pywebml.settings.protocol import attachment_url, parse_attachment, parse_changeset, parse_object, parse_root
from pywebml.settings.signature import SignatureCheck, verify
from pywebml.settings.x509 import parse_chain

Read = Callable[[str], Awaitable[bytes]]
"""From an address to its bytes; raises `SettingsNetworkError`."""


@dataclass(slots=True)
class Report:
    """What was found.

    Attributes:
        lines: What is in order, for people.
        problems: What clients would refuse.
    """

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def folder_reader(mirror: Path, base: str) -> Read:
    """Reads a mirror's files as a static host would answer them.

    Args:
        mirror: The server's root.
        base: The address that the root is to have.
    """

    root = mirror.resolve()

    def read_file(url: str) -> bytes:
        target = (root / url.partition("?")[0].removeprefix(base)).resolve()
        if not url.startswith(base) or not target.is_relative_to(root):
            raise SettingsNetworkError(f"{url} is not in the mirror.", url=url)
        try:
            return (target / "index.html" if target.is_dir() else target).read_bytes()
        except OSError as error:
            raise SettingsNetworkError(f"{target} cannot be read: {error}.", url=url) from error

    async def read(url: str) -> bytes:
        return read_file(url)

    return read


async def check_mirror(
    platform: SignatureCheck,
    read: Read,
    base: str,
    *,
    root_sha256: str,
    now: float,
    signer_name: str = SIGNER_NAME,
) -> Report:
    """Check everything that the monitor lists.

    Args:
        platform: Checks single signatures.
        read: How answers are read.
        base: Address of the server's root, with a slash at its end.
        root_sha256: Of the root that clients pin.
        now: Seconds since the epoch.
        signer_name: The leaf's name.
    """
    report = Report()
    try:
        root = parse_root(await read(base), base)
        url = f"{base}buckets/monitor/collections/changes/changeset?_expected=0"
        listed = parse_object(await read(url), url).get("changes")
        names = [(str(change["bucket"]), str(change["collection"])) for change in listed or []]
    except (SettingsError, KeyError, TypeError) as error:
        report.problems.append(f"The server's root or monitor: {error}")
        return report

    chains: dict[str, bytes] = {}

    async def fetch_chain(x5u: str) -> bytes:
        chains[x5u] = await read(urljoin(root.chains_base or base, x5u))
        return chains[x5u]

    for bucket, collection in names:
        url = f"{base}buckets/{bucket}/collections/{collection}/changeset?_expected=0"
        try:
            changeset = parse_changeset(await read(url), url)
            records = [change for change in changeset.changes if change.get("deleted") is not True]
            await verify(
                platform,
                fetch_chain,
                collection=collection,
                records=records,
                timestamp=changeset.timestamp,
                metadata=changeset.metadata,
                now=now,
                root_sha256=root_sha256,
                signer_name=signer_name,
            )
        except SettingsError as error:
            report.problems.append(f"{bucket}/{collection}: {error}")
            continue
        report.lines.append(f"{bucket}/{collection}: {len(records)} records, signed")
        for record in records:
            if "attachment" in record:
                await _check_attachment(report, read, root.attachments_base, collection, record)
        if collection == "ml-inference-options":
            _check_options(report, records)
    _tell_expiry(report, chains, now)
    return report


async def _check_attachment(report: Report, read: Read, base: str, collection: str, record: Mapping[str, Any]) -> None:
    try:
        attachment = parse_attachment(record, collection)
        data = await read(attachment_url(base, attachment))
    except (AttachmentError, SettingsNetworkError) as error:
        report.problems.append(f"{collection}, record {record.get('id')}: {error}")
        return
    if (len(data), hashlib.sha256(data).hexdigest()) != (attachment.size, attachment.sha256):
        report.problems.append(
            f"{collection}, record {record.get('id')}: the bytes of {attachment.location} are not those of the record."
        )
    else:
        report.lines.append(f"  {attachment.filename}: {attachment.size} bytes, as its record says")


def _check_options(report: Report, records: Sequence[Mapping[str, Any]]) -> None:
    """Name the records that leave a client without a choice."""
    asked = {(record.get("featureId"), record.get("taskName"), record.get("modelId")) for record in records}
    for feature, task, model in sorted(asked, key=str):
        for wanted in (
            {"feature_id": feature} if feature else {},
            {"task_name": task, "model_id": model} if task and model and not feature else {},
        ):
            try:
                select_options(records, **{name: str(value) for name, value in wanted.items()})
            except NoMatchingRecordError as error:
                if str(error) not in report.problems:
                    report.problems.append(str(error))


def _tell_expiry(report: Report, chains: Mapping[str, bytes], now: float) -> None:
    for x5u, pem in chains.items():
        try:
            ends = min(certificate.not_after for certificate in parse_chain(pem))
        except SignatureError:
            continue
        report.lines.append(f"{x5u}: good for {max(0, int((ends - now) // 86400))} more days")
