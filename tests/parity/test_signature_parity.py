"""Verdicts on signatures and chains against autograph-utils, Mozilla's own verifier."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import autograph_utils
import pytest

from pywebml.errors import SignatureError
from pywebml.platform.native_crypto import verify_signature
from pywebml.settings.canonical_json import PREFIX, signed_message
from pywebml.settings.signature import SIGNER_NAME, verify
from tests.chains import NOW, make_chains

CHAINS = make_chains()
TIMESTAMP = 1_780_000_000_000
RECORDS = [{"id": "a", "last_modified": 1, "title": "é🙂"}, {"id": "b", "last_modified": TIMESTAMP}]

STRICTER = {
    "wrong_name": "it reads the common name, which is the right one here; clients go by the alternative name",
    "no_name": "the same",
    "second_name": "the same",
    "ca_leaf": "it does not ask whether the leaf is an issuer",
    "intermediate_usage": "it reads the key usage of leaves only",
}
"""What we refuse and it accepts, and why."""


class Native:
    """The one thing that is needed of a platform."""

    async def verify_signature(self, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
        return verify_signature(algorithm, public_key_spki, signature, data)


class Chain:
    """As much of an HTTP session as it needs."""

    def __init__(self, pem: bytes) -> None:
        self._pem = pem

    @contextlib.asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[Chain]:
        yield self

    def raise_for_status(self) -> None:
        pass

    async def read(self) -> bytes:
        return self._pem


async def ours(pem: bytes, signature: str, records: list[dict[str, object]]) -> bool:
    async def fetch(x5u: str) -> bytes:
        return pem

    entry = {"mode": "p384ecdsa", "x5u": "x", "signature": signature}
    try:
        await verify(
            Native(),
            fetch,
            collection="c",
            records=records,
            timestamp=TIMESTAMP,
            metadata={"signatures": [entry]},
            now=NOW.timestamp(),
            root_sha256=CHAINS.root_sha256,
        )
    except SignatureError:
        return False
    return True


async def theirs(pem: bytes, signature: str, records: list[dict[str, object]]) -> bool:
    verifier = autograph_utils.SignatureVerifier(
        Chain(pem),
        autograph_utils.MemoryCache(),
        bytes.fromhex(CHAINS.root_sha256),
        subject_name_check=autograph_utils.ExactMatch(SIGNER_NAME),
    )
    message = signed_message(records, TIMESTAMP).removeprefix(PREFIX)
    try:
        return bool(await verifier.verify(message, signature, "x"))
    except Exception:
        # Broken input brings many kinds of errors.
        return False


@pytest.mark.parametrize("name", sorted(CHAINS.signers))
@pytest.mark.parametrize("change", ["none", "record", "signature", "other"])
async def test_verdicts_are_the_same(name: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograph_utils, "_now", lambda: NOW)
    signer = CHAINS.signers["good" if name in {"wrong_curve", "root_alone"} else name]
    signature = signer.sign(RECORDS, TIMESTAMP, collection="c")
    records: list[dict[str, object]] = [dict(record) for record in RECORDS]
    if change == "record":
        records[0]["title"] = "e"
    elif change == "signature":
        signature = signature[:-4]
    elif change == "other":
        signature = CHAINS.signers["other" if name != "other" else "good"].sign(RECORDS, TIMESTAMP, collection="c")
    pem = CHAINS.signers[name].chain_pem
    verdicts = await ours(pem, signature, records), await theirs(pem, signature, records)
    if name in STRICTER:
        assert verdicts == (False, change == "none")
    else:
        assert verdicts[0] == verdicts[1]
        assert verdicts[0] == (name in {"good", "other"} and change == "none")
