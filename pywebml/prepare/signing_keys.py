"""A folder with the keys and certificates of one signer.

    root.pem, root.key                  what clients pin; the key may be moved off line
    intermediate.pem, intermediate.key  issues leaves
    chain.pem, leaf.key                 signs collections; chain.pem is what clients fetch

Keys are readable for their owner only, and are written before the certificates that name them.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509

from pywebml.errors import PrepareError, RecordError
from pywebml.prepare.signing import (
    Identity,
    KeyKind,
    Signer,
    issue,
    leaf_profile,
    load_identity,
    load_signer,
    make_key,
    make_signer,
)
from pywebml.settings.signature import SIGNER_NAME

RENEW_BEFORE_DAYS = 60
"""A leaf that is good for fewer days is replaced when something is signed."""

_CLOCK_ERROR = datetime.timedelta(days=1)


def make_signing_keys(
    folder: Path,
    now: datetime.datetime,
    *,
    root_key: KeyKind = "rsa-4096",
    root_days: int = 3650,
    leaf_days: int = 365,
    signer_name: str = SIGNER_NAME,
) -> Signer:
    """Make a chain and write it to a new folder.

    Args:
        folder: Must not hold one yet.
        now: With a time zone. Certificates are good from the day before, for clocks that are slow.
        root_key: Kind of the root's key; Mozilla's is RSA.
        root_days: How long the root, and half as long the intermediate, is good.
        leaf_days: How long the leaf is good.
        signer_name: The leaf's name.

    Raises:
        PrepareError: There is one already, or the disk failed.
    """
    if (folder / "chain.pem").exists() or (folder / "root.key").exists():
        raise PrepareError(f"{folder} already holds signing keys. Choose another folder; these are still needed.")
    signer, root, intermediate = make_signer(
        not_before=now.replace(microsecond=0) - _CLOCK_ERROR,
        root_days=root_days,
        intermediate_days=max(root_days // 2, 1),
        leaf_days=leaf_days,
        root_key=root_key,
        signer_name=signer_name,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, identity in (("root", root), ("intermediate", intermediate)):
            _write_secret(folder / f"{name}.key", identity.key_pem())
            _write(folder / f"{name}.pem", identity.certificate_pem())
        _write_leaf(folder, signer)
    except OSError as error:
        raise PrepareError(f"The signing keys could not be written to {folder}: {error}.") from error
    return signer


def open_signing_keys(folder: Path) -> Signer:
    """The signer of a folder.

    Raises:
        RecordError: There is none, or its files do not belong together.
    """
    return load_signer(_read(folder / "chain.pem"), _read(folder / "leaf.key"))


def days_left(signer: Signer, now: datetime.datetime) -> float:
    """For how many days clients will accept what the signer signs."""
    ends = [signer.leaf.certificate.not_valid_after_utc, *(issuer.not_valid_after_utc for issuer in signer.issuers)]
    return (min(ends) - now).total_seconds() / 86400


def renew_leaf(folder: Path, now: datetime.datetime, *, leaf_days: int = 365) -> Signer:
    """Replace the leaf by a new one with a new key, of the same name.

    Raises:
        RecordError: The keys cannot be read, or the intermediate has expired.
        PrepareError: The disk failed.
    """
    old = open_signing_keys(folder)
    intermediate = load_identity(_read(folder / "intermediate.pem"), _read(folder / "intermediate.key"))
    now = now.replace(microsecond=0)
    last = min(issuer.not_valid_after_utc for issuer in old.issuers)
    if last <= now:
        raise RecordError(
            f"The certificates above the signer's expired on {last:%Y-%m-%d}. Make new keys, and give clients the new "
            "root's hash."
        )
    until = min(now + datetime.timedelta(days=leaf_days), last)
    profile = leaf_profile(now - _CLOCK_ERROR, until, signer_name=_name_of(old.leaf.certificate))
    signer = Signer(issue(profile, make_key("ec-p384"), intermediate), old.issuers)
    try:
        _write_leaf(folder, signer)
    except OSError as error:
        raise PrepareError(f"The new leaf could not be written to {folder}: {error}.") from error
    return signer


def _name_of(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)[0]


def _write_leaf(folder: Path, signer: Signer) -> None:
    identity: Identity = signer.leaf
    # The pair is replaced key first; one without the other is noticed when it is read.
    _write_secret(folder / "leaf.key", identity.key_pem())
    _write(folder / "chain.pem", signer.chain_pem)


def _write(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _write_secret(path: Path, data: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    part.replace(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecordError(f"The signing keys are not complete: {path} cannot be read ({error.strerror}).") from error
