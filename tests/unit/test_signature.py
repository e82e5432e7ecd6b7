"""Chains and signatures: what passes, what is refused and why, and that no bytes break the check."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebml.errors import OptionsError, SettingsNetworkError, SignatureError
from pywebml.platform.native_crypto import ALGORITHMS, verify_signature
from pywebml.settings.signature import SIGNER_NAME, verify, verify_chain
from pywebml.settings.x509 import parse_certificate, parse_chain, raw_ecdsa_signature
from tests.chains import DAY, NOW, make_chains

CHAINS = make_chains()
GOOD = CHAINS.signers["good"]
TIMESTAMP = 1_780_000_000_000
RECORDS = [
    {"id": "b", "last_modified": TIMESTAMP, "title": "é🙂\u2028\x7f"},
    {"id": "a", "last_modified": 5, "attachment": {"size": 3, "hash": "00", "filename": "x.wasm", "location": "y/z"}},
    {"id": "gone", "last_modified": 6, "deleted": True},
]
FUZZ = settings(max_examples=400, deadline=None, derandomize=True, database=None)


class Native:
    """The one thing that is needed of a platform."""

    async def verify_signature(self, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
        return verify_signature(algorithm, public_key_spki, signature, data)


def entry(signer: str = "good", **changes: Any) -> dict[str, Any]:
    key = GOOD if signer in {"wrong_curve", "root_alone"} else CHAINS.signers[signer]
    return {**key.entry(RECORDS, TIMESTAMP, f"https://x5u.example/{signer}", collection="c"), **changes}


async def fetch(x5u: str) -> bytes:
    name = x5u.rpartition("/")[2]
    if name not in CHAINS.signers:
        raise SettingsNetworkError(f"{x5u} is not there.", url=x5u)
    return CHAINS.signers[name].chain_pem


async def check(
    *signatures: Any,
    records: Any = RECORDS,
    timestamp: int = TIMESTAMP,
    now: datetime.datetime = NOW,
    root: str = CHAINS.root_sha256,
    fetch_chain: Callable[[str], Awaitable[bytes]] = fetch,
) -> None:
    await verify(
        Native(),
        fetch_chain,
        collection="c",
        records=records,
        timestamp=timestamp,
        metadata={"signatures": list(signatures)},
        now=now.timestamp(),
        root_sha256=root,
    )


@pytest.mark.parametrize("signer", ["good", "other"])
async def test_good_signature_passes(signer: str) -> None:
    await check(entry(signer))
    await check(entry(signer), records=list(reversed(RECORDS)))


async def test_chain_of_elliptic_curves_alone_passes_under_its_own_root() -> None:
    await check(entry("all_ec"), root=CHAINS.all_ec_root_sha256)
    await check(entry("all_ec"), root=":".join(CHAINS.all_ec_root_sha256[i : i + 2] for i in range(0, 64, 2)).upper())


@pytest.mark.parametrize(("signer", "reason"), CHAINS.reasons.items())
async def test_bad_chain_is_refused(signer: str, reason: str) -> None:
    with pytest.raises(SignatureError) as caught:
        await check(entry(signer))
    assert reason in str(caught.value)
    assert caught.value.details["collection"] == "c"


def changed(index: int, **fields: Any) -> list[dict[str, Any]]:
    return [{**record, **(fields if number == index else {})} for number, record in enumerate(RECORDS)]


@pytest.mark.parametrize(
    ("records", "timestamp"),
    [
        (changed(0, title="e"), TIMESTAMP),
        (changed(0, more=None), TIMESTAMP),
        (changed(1, last_modified=6), TIMESTAMP),
        (changed(2, deleted=False), TIMESTAMP),
        (RECORDS[1:], TIMESTAMP),
        ([], TIMESTAMP),
        (RECORDS, TIMESTAMP + 1),
    ],
)
async def test_changed_records_are_refused(records: Any, timestamp: int) -> None:
    with pytest.raises(SignatureError, match="not that of these records"):
        await check(entry(), records=records, timestamp=timestamp)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mode": "p256ecdsa"}, "mode"),
        ({"mode": None}, "mode"),
        ({"x5u": ""}, "where its certificates are"),
        ({"x5u": None}, "where its certificates are"),
        ({"x5u": "x" * 3000}, "where its certificates are"),
        ({"signature": ""}, "96 bytes"),
        ({"signature": "A" * 127}, "96 bytes"),
        ({"signature": "!" * 128}, "96 bytes"),
        ({"signature": "A" * 128}, "not that of these records"),
        ({"x5u": "https://x5u.example/other"}, "not that of these records"),
    ],
)
async def test_bad_entry_is_refused_alone_and_passed_over_beside_a_good_one(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SignatureError, match=reason):
        await check(entry(**changes))
    await check(entry(**changes), entry())


@pytest.mark.parametrize("signatures", [None, {}, [], "x", [None], [5], [[]], [{}] * 9])
async def test_signatures_that_are_no_list_of_entries_are_refused(signatures: Any) -> None:
    with pytest.raises(SignatureError):
        await verify(
            Native(),
            fetch,
            collection="c",
            records=[],
            timestamp=0,
            metadata={"signatures": signatures},
            now=NOW.timestamp(),
            root_sha256=CHAINS.root_sha256,
        )


async def test_chain_that_cannot_be_fetched_says_nothing_about_the_records() -> None:
    nowhere = entry(x5u="https://x5u.example/nowhere")
    with pytest.raises(SettingsNetworkError, match="nowhere"):
        await check(nowhere)
    with pytest.raises(SettingsNetworkError):
        await check(nowhere, entry("expired"))
    await check(nowhere, entry())


async def test_one_chain_is_fetched_once() -> None:
    asked = []

    async def counting(x5u: str) -> bytes:
        asked.append(x5u)
        return await fetch(x5u)

    await check(entry(signature="A" * 128), entry(), fetch_chain=counting)
    assert len(asked) == 1


async def test_certificates_are_good_in_their_last_second_and_not_after_it() -> None:
    end = GOOD.leaf.certificate.not_valid_after_utc
    await check(entry(), now=end + datetime.timedelta(seconds=0.9))
    with pytest.raises(SignatureError, match="has expired"):
        await check(entry(), now=end + datetime.timedelta(seconds=1))
    begin = GOOD.leaf.certificate.not_valid_before_utc
    await check(entry(), now=begin)
    with pytest.raises(SignatureError, match="not valid before"):
        await check(entry(), now=begin - datetime.timedelta(seconds=1))
    with pytest.raises(SignatureError, match="has expired"):
        await check(entry(), now=NOW + 5000 * DAY)


@pytest.mark.parametrize("root", ["", "c8a8", "g" * 64, "c8" * 33])
async def test_root_hash_that_is_none_is_a_mistake_of_the_caller(root: str) -> None:
    with pytest.raises(OptionsError):
        await check(entry(), root=root)


async def test_the_same_records_verify_under_another_collections_name() -> None:
    # What the protocol cannot promise: the name is not part of what is signed.
    await verify(
        Native(),
        fetch,
        collection="another",
        records=RECORDS,
        timestamp=TIMESTAMP,
        metadata={"signatures": [entry()]},
        now=NOW.timestamp(),
        root_sha256=CHAINS.root_sha256,
    )


async def test_fractions_are_refused_with_their_place() -> None:
    with pytest.raises(SignatureError, match=r"\$\.data\[0\]\.x is a float"):
        await check(entry(), records=[{"id": "a", "x": 0.5}])


@FUZZ
@given(st.binary(max_size=400))
async def test_arbitrary_bytes_are_no_chain(data: bytes) -> None:
    async def fetch_bytes(x5u: str) -> bytes:
        return data

    with pytest.raises(SignatureError):
        await check(entry(), fetch_chain=fetch_bytes)
    for parse in (parse_certificate, lambda data: raw_ecdsa_signature(data, "p384")):
        with pytest.raises(SignatureError):
            parse(data)


PARTS = [parse_certificate(certificate.der).der for certificate in parse_chain(GOOD.chain_pem)]


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """Near misses: one bit flipped, cut off, or a piece repeated elsewhere."""
    places = st.integers(0, len(data) - 1)
    flipped = st.builds(
        lambda at, bit: data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :], places, st.integers(0, 7)
    )
    cut = places.map(lambda at: data[:at])
    spliced = st.builds(lambda one, other: data[:one] + data[other:], places, places).filter(lambda new: new != data)
    return st.one_of(flipped, cut, spliced)


@FUZZ
@given(st.integers(0, 2).flatmap(lambda place: st.tuples(st.just(place), mutations(PARTS[place]))))
async def test_certificate_with_one_thing_changed_never_passes(change: tuple[int, bytes]) -> None:
    place, data = change
    try:
        changed_one = parse_certificate(data)
    except SignatureError:
        return
    chain = [parse_certificate(part) for part in PARTS]
    chain[place] = changed_one
    with pytest.raises(SignatureError):
        await verify_chain(
            Native(), chain, now=NOW.timestamp(), root_sha256=CHAINS.root_sha256, signer_name=SIGNER_NAME
        )


@FUZZ
@given(mutations(GOOD.chain_pem))
async def test_chain_file_with_one_thing_changed_never_passes_as_another_chain(pem: bytes) -> None:
    try:
        chain = parse_chain(pem)
    except SignatureError:
        return
    # Base64 and line ends have more than one spelling; the certificates in it must be the same ones.
    if [certificate.der for certificate in chain] == PARTS:
        return
    with pytest.raises(SignatureError):
        await verify_chain(
            Native(), chain, now=NOW.timestamp(), root_sha256=CHAINS.root_sha256, signer_name=SIGNER_NAME
        )


@FUZZ
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200), st.integers(), st.none(), st.lists(st.integers())))
async def test_arbitrary_signature_never_passes(signature: object) -> None:
    with pytest.raises(SignatureError):
        await check(entry(signature=signature))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=8,
)


@FUZZ
@given(st.lists(st.dictionaries(st.sampled_from(["id", "x", "deleted", "last_modified"]), JSON), max_size=3), JSON)
async def test_arbitrary_records_and_signatures_never_pass(records: list[dict[str, Any]], signatures: Any) -> None:
    with pytest.raises(SignatureError):
        await verify(
            Native(),
            fetch,
            collection="c",
            records=records,
            timestamp=TIMESTAMP,
            metadata={"signatures": signatures},
            now=NOW.timestamp(),
            root_sha256=CHAINS.root_sha256,
        )


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_key_that_is_none_has_signed_nothing(algorithm: str) -> None:
    leaf = parse_certificate(PARTS[0])
    assert not verify_signature(algorithm, b"", b"", b"data")
    assert not verify_signature(algorithm, leaf.public_key.spki, b"\1" * 96, b"data")


def test_unknown_algorithm_is_refused() -> None:
    with pytest.raises(SignatureError, match="md5"):
        verify_signature("rsassa-pkcs1-v1_5-md5", b"", b"", b"")


def test_chain_says_what_its_certificates_say() -> None:
    leaf, intermediate, root = parse_chain(GOOD.chain_pem)
    assert leaf.dns_names == (SIGNER_NAME,)
    assert (leaf.public_key.kind, intermediate.public_key.kind, root.public_key.kind) == ("p384", "p384", "rsa")
    # As in Mozilla's chain, the intermediate is older than its root and signed with RSA and SHA-256.
    assert (intermediate.signature_scheme, intermediate.signature_hash) == ("rsassa-pkcs1-v1_5", "sha256")
    assert intermediate.not_before < root.not_before
    assert (leaf.is_ca, intermediate.is_ca, intermediate.path_length) == (False, True, 0)
    assert hashlib.sha256(root.der).hexdigest() == CHAINS.root_sha256
    assert replace(leaf, der=b"") != leaf
