"""Signers with good chains and with bad ones, made once per clock."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from functools import cache

from cryptography.x509.oid import ExtendedKeyUsageOID

from pywebml.prepare.signing import (
    Identity,
    Signer,
    intermediate_profile,
    issue,
    leaf_profile,
    make_key,
    root_profile,
)
from pywebml.settings.signature import SIGNER_NAME

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Chains:
    """All of them around one clock.

    Attributes:
        root_sha256: Of the RSA root that clients pin.
        all_ec_root_sha256: Of the root of the chain `all_ec`.
        signers: By name. `good` and `other` verify against the first root, `all_ec` against the second, no other one.
        reasons: Name of a bad one to words of the reason.
    """

    root_sha256: str
    all_ec_root_sha256: str
    signers: dict[str, Signer]
    reasons: dict[str, str]


@cache
def make_chains(now: datetime.datetime = NOW) -> Chains:
    """Takes about a second, for the RSA keys."""
    now = now.replace(microsecond=0)
    long = (now - 300 * DAY, now + 3000 * DAY)
    short = (now - 30 * DAY, now + 60 * DAY)
    root = issue(root_profile(*long, name="Test Root"), make_key("rsa-4096"))
    # Like Mozilla's, the intermediate is older than its root.
    between = (now - 400 * DAY, now + 1000 * DAY)
    intermediate_says = intermediate_profile(*between, name="Test Intermediate")
    intermediate = issue(intermediate_says, make_key("ec-p384"), root)
    leaf_says = leaf_profile(*short)
    leaf = issue(leaf_says, make_key("ec-p384"), intermediate)

    def below(identity: Identity, *issuers: Identity) -> Signer:
        return Signer(identity, tuple(issuer.certificate for issuer in issuers))

    def other_leaf(**changes: object) -> Signer:
        return below(issue(replace(leaf_says, **changes), make_key("ec-p384"), intermediate), intermediate, root)  # type: ignore[arg-type]

    def other_intermediate(**changes: object) -> Signer:
        middle = issue(replace(intermediate_says, **changes), make_key("ec-p384"), root)  # type: ignore[arg-type]
        return below(issue(leaf_says, make_key("ec-p384"), middle), middle, root)

    ec_root = issue(root_profile(*long, name="Test Root"), make_key("ec-p256"))
    ec_intermediate = issue(intermediate_says, make_key("ec-p384"), ec_root)
    ec_leaf = issue(leaf_says, make_key("ec-p384"), ec_intermediate)
    # Same names as the real ones, other keys.
    impostor = issue(intermediate_says, make_key("ec-p384"))
    forged = issue(leaf_says, make_key("ec-p384"), impostor)
    below_leaf = issue(leaf_says, make_key("ec-p384"), leaf)
    second = issue(replace(intermediate_says, common_name="Second"), make_key("ec-p384"), intermediate)
    good = below(leaf, intermediate, root)

    expired = (now - 60 * DAY, now - DAY)
    signers = {
        "good": good,
        "other": other_leaf(),
        "all_ec": below(ec_leaf, ec_intermediate, ec_root),
        "expired": other_leaf(not_before=expired[0], not_after=expired[1]),
        "not_yet": other_leaf(not_before=now + DAY),
        "expired_intermediate": other_intermediate(not_before=expired[0], not_after=expired[1]),
        "wrong_name": other_leaf(dns_names=("onecrl.content-signature.mozilla.org",)),
        "no_name": other_leaf(dns_names=()),
        "second_name": other_leaf(dns_names=(SIGNER_NAME, "www.content-signature.mozilla.org")),
        "wrong_usage": other_leaf(usages=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        "no_usage": other_leaf(usages=()),
        "ca_leaf": other_leaf(is_ca=True),
        "wrong_curve": below(issue(leaf_says, make_key("ec-p256"), intermediate), intermediate, root),
        "wrong_root": below(ec_leaf, ec_intermediate, ec_root),
        "without_root": below(leaf, intermediate),
        "leaf_alone": below(leaf),
        "root_alone": below(root),
        "forged_leaf": below(forged, intermediate, root),
        "glued_root": below(ec_leaf, ec_intermediate, root),
        "foreign_intermediate": below(forged, impostor, root),
        "leaf_as_issuer": below(below_leaf, leaf, intermediate, root),
        "too_long": below(issue(leaf_says, make_key("ec-p384"), second), second, intermediate, root),
        "other_domain": other_intermediate(permitted_names=("elsewhere.example",)),
        "excluded_name": other_intermediate(permitted_names=(), excluded_names=("mozilla.org",)),
        "subdomains_only": other_intermediate(permitted_names=(f".{SIGNER_NAME}",)),
        "intermediate_usage": other_intermediate(usages=(ExtendedKeyUsageOID.SERVER_AUTH,)),
        "intermediate_no_ca": other_intermediate(is_ca=False, path_length=None),
        "skipped_intermediate": below(leaf, root),
        "wrong_order": Signer(leaf, (root.certificate, intermediate.certificate)),
    }
    reasons = {
        "expired": "the signer's certificate has expired",
        "not_yet": "the signer's certificate is not valid before",
        "expired_intermediate": "intermediate certificate 1 has expired",
        "wrong_name": "is for onecrl.content-signature.mozilla.org and not for",
        "no_name": "is for nobody",
        "second_name": "is for remote-settings.content-signature.mozilla.org, www.",
        "wrong_usage": "not for code signing",
        "no_usage": "not for code signing",
        "ca_leaf": "that of an issuer",
        "wrong_curve": "kind p256 and not p384",
        "wrong_root": "ends in a root with SHA-256",
        "without_root": "ends in a root with SHA-256",
        "leaf_alone": "one certificate",
        "root_alone": "one certificate",
        "forged_leaf": "the signer's certificate was not signed by the next one",
        # Its subject is the right one, so that only the signature tells.
        "glued_root": "signed in a way that its issuer's key cannot sign",
        "foreign_intermediate": "intermediate certificate 1 was not issued by the next one",
        "leaf_as_issuer": "intermediate certificate 1 may not issue certificates",
        "too_long": "allows 0 issuers below it, and there are 1",
        "other_domain": "may not issue certificates for remote-settings.",
        "excluded_name": "may not issue certificates for remote-settings.",
        "subdomains_only": "may not issue certificates for remote-settings.",
        "intermediate_usage": "intermediate certificate 1 is not for code signing",
        "intermediate_no_ca": "intermediate certificate 1 may not issue certificates",
        "skipped_intermediate": "not issued by the next one",
        "wrong_order": "ends in a root with SHA-256",
    }
    return Chains(good.root_sha256, signers["all_ec"].root_sha256, signers, reasons)
