"""Whatever bytes a settings server sends: a named error, and nothing of them is stored or believed."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebml.errors import AttachmentError, SettingsError
from pywebml.platform.native import NativePlatform
from pywebml.prepare.mirror import MirrorAttachment, MirrorCollection, write_mirror
from pywebml.settings import RemoteSettings, Trust
from tests.chains import make_chains
from tests.faults.server import FaultServer

FUZZ = settings(max_examples=120, deadline=None, derandomize=True, database=None)
CHANGESET = "v1/buckets/main/collections/any/changeset"
FILE = b"\0asm" + bytes(range(256))


class Published:
    """A good mirror, and a client of it with an empty store."""

    def __init__(self, folder: Path, server: FaultServer) -> None:
        self.server = server
        # As long ago as the certificates allow.
        chains = make_chains(datetime.datetime.now(datetime.UTC).replace(minute=0, second=0))
        source = folder / "file.wasm"
        source.write_bytes(FILE)
        collection = MirrorCollection(
            "main",
            "any",
            1_780_000_000_000,
            {"a": {"title": "one"}, "b": {"title": "two", "nested": [1, None, {"é": True}]}},
            {"a": MirrorAttachment(source, "application/wasm")},
        )
        write_mirror(server.root / "v1", [collection], chains.signers["good"])
        self.changeset = (server.root / CHANGESET).read_bytes()
        [self.attachment] = (server.root / "v1").rglob("*.wasm")
        [self.chain] = (server.root / "v1" / "chains").iterdir()
        self.platform = NativePlatform(folder / "cache")
        self.client = RemoteSettings(
            self.platform, f"{server.url}/v1", trust=Trust(chains.root_sha256), retry_seconds=0
        )

    async def stored(self) -> Any:
        return await self.platform.documents.get(f"settings/{self.server.url}/v1/main/any")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    with FaultServer(tmp_path_factory.mktemp("www")) as server:
        yield Published(tmp_path_factory.mktemp("client"), server)


def near_misses(data: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(data) - 1)
    flipped = st.builds(
        lambda at, bit: data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :], places, st.integers(0, 7)
    )
    spliced = st.builds(lambda one, other: data[:one] + data[other:], places, places)
    return st.one_of(flipped, places.map(lambda at: data[:at]), spliced)


@FUZZ
@given(data=st.data())
def test_changeset_of_arbitrary_bytes_is_never_believed(published: Published, data: st.DataObject) -> None:
    answer = data.draw(st.one_of(st.binary(max_size=200), near_misses(published.changeset)))

    async def check() -> None:
        try:
            await published.client.sync("any")
        except SettingsError:
            assert await published.stored() is None
            return
        # Some bytes carry no meaning: what was believed must be exactly what was signed.
        good = {record["id"]: record for record in json.loads(published.changeset)["changes"]}
        assert (await published.stored())["records"] == good
        await published.platform.documents.delete(f"settings/{published.server.url}/v1/main/any")

    published.server.write(CHANGESET, answer)
    try:
        asyncio.run(check())
    finally:
        published.server.write(CHANGESET, published.changeset)


@FUZZ
@given(data=st.data())
def test_attachment_of_arbitrary_bytes_is_never_stored(published: Published, data: st.DataObject) -> None:
    answer = data.draw(st.one_of(st.binary(max_size=300), near_misses(FILE)).filter(lambda answer: answer != FILE))
    [record] = [record for record in json.loads(published.changeset)["changes"] if "attachment" in record]
    assert record["attachment"]["hash"] == hashlib.sha256(FILE).hexdigest()

    async def check() -> None:
        with pytest.raises(SettingsError):
            await published.client.attachment("any", record)
        assert await published.platform.blobs.list("attachment") == []

    published.attachment.write_bytes(answer)
    try:
        asyncio.run(check())
    finally:
        published.attachment.write_bytes(FILE)


@FUZZ
@given(data=st.data())
def test_chain_of_arbitrary_bytes_is_never_believed(published: Published, data: st.DataObject) -> None:
    good = published.chain.read_bytes()
    answer = data.draw(st.one_of(st.binary(max_size=200), near_misses(good)))
    # Base64 and line ends have more than one spelling.
    if list(_certificates(answer)) == list(_certificates(good)):
        return

    async def check() -> None:
        with pytest.raises(SettingsError):
            await published.client.sync("any")
        assert await published.stored() is None

    published.chain.write_bytes(answer)
    try:
        asyncio.run(check())
    finally:
        published.chain.write_bytes(good)


def _certificates(pem: bytes) -> Iterator[bytes]:
    for block in pem.split(b"-----BEGIN CERTIFICATE-----")[1:]:
        try:
            yield base64.b64decode(block.partition(b"-----END CERTIFICATE-----")[0])
        except ValueError:
            yield b""


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        name: st.one_of(JSON, st.sampled_from(["a", "../a", "/a", "a/../b", 5, -1, "0" * 64]))
        for name in ("filename", "location", "size", "hash", "mimetype")
    },
)


@FUZZ
@given(value=st.one_of(JSON, FIELDS))
def test_attachment_field_of_arbitrary_values_is_an_attachment_error(published: Published, value: Any) -> None:
    with pytest.raises(AttachmentError):
        asyncio.run(published.client.attachment("any", {"id": "a", "attachment": value}))
