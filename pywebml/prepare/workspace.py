"""Where somebody who hosts their own settings keeps what they publish.

    {workspace}/settings.json              bucket of the collections
    {workspace}/keys/                      see `signing_keys`; keep this folder to yourself
    {workspace}/certificates/{x5u}         chains that signatures name
    {workspace}/collections/{name}.json    records, timestamp, signatures
    {workspace}/attachments/{location}     files of records, named after their bytes

Everything but the keys can be put under version control.
"""

from __future__ import annotations

import datetime
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pywebml.errors import PrepareError, RecordError
from pywebml.prepare.mirror import (
    Json,
    MirrorAttachment,
    PublishedCollection,
    chain_name,
    check_fields,
    check_names,
    describe_attachment,
    signed,
    write_published,
)
from pywebml.prepare.signing import KeyKind, Signer
from pywebml.prepare.signing_keys import (
    RENEW_BEFORE_DAYS,
    days_left,
    make_signing_keys,
    open_signing_keys,
    renew_leaf,
)
from pywebml.settings.protocol import parse_changeset

FORMAT = 1


class Workspace:
    """One folder.

    Args:
        folder: As `create` made it.

    Raises:
        RecordError: It is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            values = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
            self.bucket = str(values["bucket"])
            version = values["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(
                f"{folder} is no settings workspace ({error}). Make one: pywebml settings init {folder}"
            ) from error
        if version != FORMAT:
            raise RecordError(f"{folder} has format {version}, and this version of pywebml knows {FORMAT} only.")

    @classmethod
    def create(
        cls,
        folder: Path,
        now: datetime.datetime,
        *,
        bucket: str = "main",
        root_key: KeyKind = "rsa-4096",
        root_days: int = 3650,
        leaf_days: int = 365,
    ) -> Workspace:
        """Make a workspace with new keys.

        Raises:
            RecordError: `bucket` is no name.
            PrepareError: There is one already, or the disk failed.
        """
        check_names(bucket, "any")
        if (folder / "settings.json").exists():
            raise PrepareError(
                f"{folder} already is a settings workspace. Its keys are still needed; nothing was made."
            )
        make_signing_keys(folder / "keys", now, root_key=root_key, root_days=root_days, leaf_days=leaf_days)
        _write(folder / "settings.json", {"format": FORMAT, "bucket": bucket})
        return cls(folder)

    @property
    def signer(self) -> Signer:
        """Whose key signs. Raises `RecordError`."""
        return open_signing_keys(self.folder / "keys")

    def collections(self) -> list[str]:
        """Names, in order."""
        return sorted(path.stem for path in (self.folder / "collections").glob("*.json"))

    def read(self, collection: str) -> PublishedCollection:
        """A collection as it stands; one that does not exist is empty.

        Raises:
            RecordError: Its file is damaged.
        """
        check_names(self.bucket, collection)
        path = self.folder / "collections" / f"{collection}.json"
        if not path.exists():
            return PublishedCollection(self.bucket, collection, 0, [])
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            answer = {"timestamp": values["timestamp"], "changes": values["records"], "metadata": {}}
            changeset = parse_changeset(json.dumps(answer).encode(), str(path))
            signatures = list(values["signatures"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path} is damaged: {error}.", collection=collection) from error
        files = {
            str(record["attachment"]["location"]): self.folder / "attachments" / record["attachment"]["location"]
            for record in changeset.changes
            if isinstance(record.get("attachment"), dict)
        }
        return PublishedCollection(self.bucket, collection, changeset.timestamp, changeset.changes, files, signatures)

    def put(
        self,
        collection: str,
        fields: Mapping[str, Json],
        now: datetime.datetime,
        *,
        record_id: str | None = None,
        attachment: MirrorAttachment | None = None,
    ) -> str:
        """Write a record; the collection is unsigned afterwards.

        Args:
            collection: Is made when it is not there.
            fields: All fields of a new record, the changed ones of an old one.
            now: With a time zone.
            record_id: Default: a new one.
            attachment: A file to attach in place of the one that is there.

        Returns:
            The record's id.

        Raises:
            RecordError: The record cannot be published.
            PrepareError: The disk failed.
        """
        current = self.read(collection)
        record_id = record_id or str(uuid.uuid4())
        check_fields(fields, f"record '{record_id}'", collection)
        old: Mapping[str, Json] = next((record for record in current.records if record["id"] == record_id), {})
        timestamp = _next_timestamp(current, now)
        record: dict[str, Json] = {**old, **fields, "id": record_id, "last_modified": timestamp}
        if attachment is not None:
            record["attachment"] = self._keep(collection, attachment)
        others = [other for other in current.records if other["id"] != record_id]
        self._save(collection, timestamp, [record, *others])
        return record_id

    def remove(self, collection: str, record_id: str, now: datetime.datetime) -> None:
        """Delete a record; the collection is unsigned afterwards. Raises `RecordError` when there is none."""
        current = self.read(collection)
        others = [record for record in current.records if record["id"] != record_id]
        if len(others) == len(current.records):
            raise RecordError(f"{collection} has no record '{record_id}'.", collection=collection)
        self._save(collection, _next_timestamp(current, now), others)

    def sign(self, now: datetime.datetime, *, renew: bool = False) -> list[str]:
        """Sign what is not signed by the present certificate.

        Args:
            now: With a time zone.
            renew: Replace the leaf although it is good for long. One that is about to expire is replaced anyway.

        Returns:
            Names of the collections that were signed. Those whose records did not change get a new timestamp, so that
            clients fetch the new signature.

        Raises:
            RecordError: The keys cannot be used, or a record cannot be signed.
            PrepareError: The disk failed.
        """
        signer = self.signer
        if renew or days_left(signer, now) < RENEW_BEFORE_DAYS:
            signer = renew_leaf(self.folder / "keys", now)
        x5u = chain_name(signer)
        changed = []
        for name in self.collections():
            current = self.read(name)
            if any(entry.get("x5u") == x5u for entry in current.signatures):
                continue
            timestamp = _next_timestamp(current, now) if current.signatures else current.timestamp
            fresh = signed(PublishedCollection(self.bucket, name, timestamp, current.records, current.files), signer)
            # The chain first: a signature whose chain is missing would be refused.
            self._write_bytes(self.folder / "certificates" / x5u, signer.chain_pem)
            self._save(name, timestamp, fresh.records, fresh.signatures)
            changed.append(name)
        return changed

    def export(self, mirror: Path) -> list[PublishedCollection]:
        """Write the static mirror in one step.

        Args:
            mirror: The server's root, such as `dist/v1`; what is there is replaced.

        Raises:
            RecordError: A collection is not signed.
            PrepareError: The disk failed.
        """
        collections = [self.read(name) for name in self.collections()]
        unsigned = [collection.collection for collection in collections if not collection.signatures]
        if unsigned:
            raise RecordError(
                f"Not signed since their last change: {', '.join(unsigned)}. Sign first: pywebml settings sign "
                f"{self.folder}",
                collection=unsigned[0],
            )
        names = {entry["x5u"] for collection in collections for entry in collection.signatures}
        try:
            chains = {name: (self.folder / "certificates" / name).read_bytes() for name in names}
        except OSError as error:
            raise RecordError(f"A certificate chain is missing ({error}). Sign again with --renew.") from error
        write_published(mirror, collections, chains)
        return collections

    def _keep(self, collection: str, attachment: MirrorAttachment) -> dict[str, Json]:
        description = describe_attachment(self.bucket, collection, attachment)
        target = self.folder / "attachments" / str(description["location"])
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{target.name}.part")
            shutil.copyfile(attachment.source, part)
            part.replace(target)
        except OSError as error:
            raise PrepareError(f"{attachment.source} could not be copied to {target}: {error}.") from error
        return description

    def _save(self, collection: str, timestamp: int, records: Any, signatures: Any = ()) -> None:
        newest_first = sorted(records, key=lambda record: (-record["last_modified"], record["id"]))
        values = {"timestamp": timestamp, "signatures": list(signatures), "records": newest_first}
        _write(self.folder / "collections" / f"{collection}.json", values)

    def _write_bytes(self, path: Path, data: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise PrepareError(f"{path} could not be written: {error}.") from error


def _next_timestamp(collection: PublishedCollection, now: datetime.datetime) -> int:
    """Later than all before, also when the clock went back: clients take a smaller one for a stale copy."""
    return max(int(now.timestamp() * 1000), collection.timestamp + 1)


def _write(path: Path, values: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise PrepareError(f"{path} could not be written: {error}.") from error
