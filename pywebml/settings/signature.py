"""Whether a collection's records are those that the signer signed.

The signer's certificate comes with a chain (`x5u`) up to a root that this package, or its configuration, pins. Source:
Remote Settings' content signatures as Firefox checks them; RFC 5280 for the chain.

What a signature does not say: of which collection or bucket the records are, and whether a newer set exists. A signed
set that is replayed under another name, or an older one, still verifies; only comparing timestamps helps.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pywebml.errors import OptionsError, SettingsNetworkError, SettingsResponseError, SignatureError
from pywebml.settings.canonical_json import signed_message
from pywebml.settings.x509 import (
    CODE_SIGNING,
    DIGITAL_SIGNATURE,
    KEY_CERT_SIGN,
    Certificate,
    NameConstraints,
    parse_chain,
    raw_ecdsa_signature,
)

PRODUCTION_ROOT_SHA256 = "c8a80e9afaef4e219b6fb5d7a71d0f101223bac5001ac28f9b0d43dc59a106db"
"""SHA-256 of the DER of the root of Mozilla's production server."""

SIGNER_NAME = "remote-settings.content-signature.mozilla.org"
"""Whose signature is asked for, unless the configuration says otherwise."""

MODE = "p384ecdsa"
"""The only kind of signature: ECDSA on P-384 with SHA-384, r and s as they are, base64url."""

_SIGNATURE = re.compile(r"[A-Za-z0-9_-]{128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_SIGNATURES = 8
_LONGEST_X5U = 2048


class SignatureCheck(Protocol):
    """What is needed from the surroundings; `Platform` has it."""

    async def verify_signature(self, algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
        """See `Platform.verify_signature`."""


async def verify(
    platform: SignatureCheck,
    fetch_chain: Callable[[str], Awaitable[bytes]],
    *,
    collection: str,
    records: Iterable[Mapping[str, Any]],
    timestamp: int,
    metadata: Mapping[str, Any],
    now: float,
    root_sha256: str = PRODUCTION_ROOT_SHA256,
    signer_name: str = SIGNER_NAME,
) -> None:
    """Return when one of the signatures of a collection is good, and raise otherwise.

    Args:
        platform: Checks single signatures.
        fetch_chain: The PEM file at an `x5u`, as bytes. `x5u` is as the server wrote it, so untrusted and perhaps
            relative; called once per different `x5u`.
        collection: Its name, for errors.
        records: All of them, in any order; tombstones count as gone.
        timestamp: Of the collection.
        metadata: Of the collection, with `signatures`: a list of `{"signature", "x5u", "mode"}`.
        now: Seconds since the epoch.
        root_sha256: SHA-256 of the root's DER, hexadecimal; colons and upper case do not matter.
        signer_name: The only alternative name that the signer's certificate may have.

    Raises:
        OptionsError: `root_sha256` is no SHA-256.
        SignatureError: None is good. The reason says for each why.
        SettingsNetworkError: A chain could not be fetched and no other signature is good, so that nothing is known
            about the records.
    """
    root = _check_root(root_sha256)
    try:
        message = signed_message(records, timestamp)
    except SignatureError as error:
        raise _refused(collection, error.details["reason"]) from error
    entries = metadata.get("signatures")
    if not isinstance(entries, list) or not entries:
        raise _refused(collection, "it has no signature")
    if len(entries) > _MOST_SIGNATURES:
        raise _refused(collection, f"it has {len(entries)} signatures, more than {_MOST_SIGNATURES}")
    reasons: list[str] = []
    unreachable: SettingsNetworkError | None = None
    chains: dict[str, bytes] = {}
    for number, entry in enumerate(entries, 1):
        try:
            signature, x5u = _read_entry(entry)
            if x5u not in chains:
                chains[x5u] = await fetch_chain(x5u)
            leaf = await verify_chain(
                platform, parse_chain(chains[x5u]), now=now, root_sha256=root, signer_name=signer_name
            )
            if await platform.verify_signature("ecdsa-p384-sha384", leaf.public_key.spki, signature, message):
                return
            reasons.append(f"signature {number} is not that of these records")
        except SignatureError as error:
            reasons.append(f"signature {number}: {error.details.get('reason', error)}")
        except SettingsResponseError as error:
            reasons.append(f"signature {number}: {error}")
        except SettingsNetworkError as error:
            unreachable = unreachable or error
    if unreachable is not None:
        raise unreachable
    raise _refused(collection, "; ".join(reasons))


async def verify_chain(
    platform: SignatureCheck, chain: Sequence[Certificate], *, now: float, root_sha256: str, signer_name: str
) -> Certificate:
    """Check a chain, leaf first, and return the leaf.

    Args:
        platform: Checks single signatures.
        chain: From `parse_chain`.
        now: Seconds since the epoch.
        root_sha256: Of the last certificate's DER, lower-case hexadecimal.
        signer_name: The leaf's only alternative name.

    Raises:
        SignatureError: The chain is not good. Details: `reason`.
    """
    leaf, issuers = chain[0], chain[1:]
    if not issuers:
        raise _unusable("its chain has one certificate, and a root must vouch for the signer's")
    # Cheap checks come first; nothing of what they say is believed before the last step.
    _check_pin(chain[-1], root_sha256)
    for place, certificate in enumerate(chain):
        _check_dates(certificate, _called(place, chain), now)
    _check_leaf(leaf, signer_name)
    for place, issuer in enumerate(issuers, 1):
        _check_issuer(issuer, _called(place, chain), below=place - 1)
        if issuer.name_constraints is not None:
            for certificate in chain[:place]:
                _check_names(certificate, issuer.name_constraints)
    for place, (certificate, issuer) in enumerate(zip(chain, issuers, strict=False)):
        await _check_link(platform, certificate, issuer, _called(place, chain))
    return leaf


def _read_entry(entry: object) -> tuple[bytes, str]:
    """The raw signature and x5u of an entry of `signatures`."""
    if not isinstance(entry, dict):
        raise _unusable("it is no object")
    mode, x5u, signature = entry.get("mode"), entry.get("x5u"), entry.get("signature")
    if mode != MODE:
        raise _unusable(f"its mode is {str(mode)[:40]!r} and not '{MODE}'")
    if not isinstance(x5u, str) or not 0 < len(x5u) <= _LONGEST_X5U:
        raise _unusable("it does not say where its certificates are")
    if not isinstance(signature, str) or not _SIGNATURE.fullmatch(signature):
        raise _unusable("it is not 96 bytes in base64url")
    return base64.urlsafe_b64decode(signature), x5u


def _check_root(root_sha256: str) -> str:
    plain = root_sha256.replace(":", "").lower()
    if not _SHA256.fullmatch(plain):
        raise OptionsError(
            f"{root_sha256[:100]!r} is no SHA-256 of a root certificate: give 64 hexadecimal digits.",
            field="settingsRoot",
            value=root_sha256,
        )
    return plain


def _check_pin(root: Certificate, root_sha256: str) -> None:
    found = hashlib.sha256(root.der).hexdigest()
    if found != root_sha256:
        raise _unusable(f"its chain ends in a root with SHA-256 {found}, and {root_sha256} is the trusted one")


def _check_dates(certificate: Certificate, called: str, now: float) -> None:
    if now < certificate.not_before:
        raise _unusable(f"{called} is not valid before {_day(certificate.not_before)}; it is {_day(now)}")
    # The last second counts whole.
    if now >= certificate.not_after + 1:
        raise _unusable(f"{called} has expired on {_day(certificate.not_after)}; it is {_day(now)}")


def _check_leaf(leaf: Certificate, signer_name: str) -> None:
    if leaf.is_ca:
        raise _unusable("the signer's certificate is that of an issuer")
    if leaf.dns_names != (signer_name.lower(),) or leaf.other_name_kinds:
        found = ", ".join(leaf.dns_names) or "nobody"
        raise _unusable(f"the signer's certificate is for {found} and not for {signer_name} alone")
    if leaf.extended_key_usage != (CODE_SIGNING,):
        raise _unusable("the signer's certificate is not for code signing alone")
    if leaf.key_usage is not None and DIGITAL_SIGNATURE not in leaf.key_usage:
        raise _unusable("the signer's certificate is not for signatures")
    if leaf.public_key.kind != "p384":
        raise _unusable(f"the signer's key is of kind {leaf.public_key.kind} and not p384")


def _check_issuer(issuer: Certificate, called: str, *, below: int) -> None:
    if not issuer.is_ca or issuer.key_usage is None or KEY_CERT_SIGN not in issuer.key_usage:
        raise _unusable(f"{called} may not issue certificates")
    if issuer.path_length is not None and below > issuer.path_length:
        raise _unusable(f"{called} allows {issuer.path_length} issuers below it, and there are {below}")
    if issuer.extended_key_usage is not None and CODE_SIGNING not in issuer.extended_key_usage:
        raise _unusable(f"{called} is not for code signing")


def _check_names(certificate: Certificate, constraints: NameConstraints) -> None:
    if certificate.other_name_kinds & constraints.other_kinds:
        raise _unusable("a certificate has a name of a kind whose constraints are not supported")
    for name in certificate.dns_names:
        if constraints.permitted is not None and not any(_within(name, base) for base in constraints.permitted):
            raise _unusable(f"its issuer may not issue certificates for {name}")
        if any(_within(name, base) for base in constraints.excluded):
            raise _unusable(f"its issuer may not issue certificates for {name}")


def _within(name: str, base: str) -> bool:
    return name.endswith(base) if base.startswith(".") else name == base or name.endswith(f".{base}")


async def _check_link(platform: SignatureCheck, certificate: Certificate, issuer: Certificate, called: str) -> None:
    if certificate.issuer != issuer.subject:
        raise _unusable(f"{called} was not issued by the next one of its chain")
    kind = issuer.public_key.kind
    if certificate.signature_scheme == "ecdsa" and kind != "rsa":
        algorithm = f"ecdsa-{kind}-{certificate.signature_hash}"
        signature = raw_ecdsa_signature(certificate.signature, kind)
    elif certificate.signature_scheme != "ecdsa" and kind == "rsa":
        algorithm = f"rsassa-pkcs1-v1_5-{certificate.signature_hash}"
        signature = certificate.signature
    else:
        raise _unusable(f"{called} is signed in a way that its issuer's key cannot sign")
    if not await platform.verify_signature(algorithm, issuer.public_key.spki, signature, certificate.tbs):
        raise _unusable(f"{called} was not signed by the next one of its chain")


def _called(place: int, chain: Sequence[Certificate]) -> str:
    if place == 0:
        return "the signer's certificate"
    return "the root certificate" if place == len(chain) - 1 else f"intermediate certificate {place}"


def _day(seconds: float) -> str:
    moment = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=int(seconds))
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _unusable(reason: str) -> SignatureError:
    return SignatureError(f"A signature is not usable: {reason}.", reason=reason)


def _refused(collection: str, reason: str) -> SignatureError:
    return SignatureError(
        f"The records of {collection} cannot be trusted: {reason}. They were not stored. Try again later; if that does "
        "not help, check this device's clock and the configured root, and tell the owner of the settings server.",
        collection=collection,
        reason=reason,
    )
