"""Keys, certificates and signatures for people who host their own Remote Settings. Needs the package `cryptography`.

The chain has Mozilla's shape: a root that clients pin, an intermediate that may only issue for names of one domain, and
a short-lived leaf whose key signs collections.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from pywebml.errors import RecordError, SignatureError
from pywebml.settings.canonical_json import signed_message
from pywebml.settings.signature import MODE, SIGNER_NAME

KeyKind: TypeAlias = Literal["rsa-4096", "ec-p256", "ec-p384"]
PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Digest: TypeAlias = Literal["sha256", "sha384", "sha512"]

_CURVES: Mapping[str, type[ec.EllipticCurve]] = {"ec-p256": ec.SECP256R1, "ec-p384": ec.SECP384R1}
_DIGESTS: Mapping[Digest, type[hashes.SHA256 | hashes.SHA384 | hashes.SHA512]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_COORDINATE_BYTES = 48


@dataclass(frozen=True, slots=True)
class Profile:
    """What a certificate is to say.

    Attributes:
        common_name: Of its subject.
        not_before: With a time zone; whole seconds.
        not_after: With a time zone; whole seconds. Still good in this second.
        is_ca: Whether it may issue certificates.
        path_length: How many issuers may come below it; None for any number.
        dns_names: Its alternative names.
        permitted_names: Name constraints for what it issues: domains; `.a.b` for subdomains only.
        excluded_names: The same, for what it may not issue.
        usages: Extended key usages; none when empty.
        digest: What its issuer signs it with.
    """

    common_name: str
    not_before: datetime.datetime
    not_after: datetime.datetime
    is_ca: bool = False
    path_length: int | None = None
    dns_names: tuple[str, ...] = ()
    permitted_names: tuple[str, ...] = ()
    excluded_names: tuple[str, ...] = ()
    usages: tuple[ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CODE_SIGNING,)
    digest: Digest = "sha384"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key.

    Attributes:
        certificate: As issued.
        key: Keep it to yourself.
    """

    certificate: x509.Certificate
    key: PrivateKey

    def certificate_pem(self) -> bytes:
        """For `x5u` files."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """PKCS #8 without a password: the file must be readable for its owner only."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs collections.

    Attributes:
        leaf: Whose key signs. On P-384.
        issuers: From the leaf's up to the root.
    """

    leaf: Identity
    issuers: tuple[x509.Certificate, ...]

    @property
    def chain_pem(self) -> bytes:
        """The file at `x5u`, leaf first."""
        return self.leaf.certificate_pem() + b"".join(
            issuer.public_bytes(serialization.Encoding.PEM) for issuer in self.issuers
        )

    @property
    def root_sha256(self) -> str:
        """What clients pin: SHA-256 of the last certificate's DER, lower-case hexadecimal."""
        certificates = (self.leaf.certificate, *self.issuers)
        return hashlib.sha256(certificates[-1].public_bytes(serialization.Encoding.DER)).hexdigest()

    def sign(self, records: Iterable[Mapping[str, Any]], timestamp: int, *, collection: str) -> str:
        """The signature of a collection, base64url. The same input gives the same signature (RFC 6979).

        Args:
            records: All of them, in any order.
            timestamp: Of the collection, in milliseconds.
            collection: Its name, for errors.

        Raises:
            RecordError: A record cannot be signed, or the leaf's key is not on P-384.
        """
        key = self.leaf.key
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
            raise RecordError(
                f"{collection} cannot be signed: the signer's key is not on P-384. Make a new one.",
                collection=collection,
            )
        try:
            message = signed_message(records, timestamp)
        except SignatureError as error:
            raise RecordError(f"{collection} cannot be signed. {error}", collection=collection) from error
        signature = key.sign(message, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
        raw = b"".join(number.to_bytes(_COORDINATE_BYTES, "big") for number in decode_dss_signature(signature))
        return base64.urlsafe_b64encode(raw).decode("ascii")

    def entry(
        self, records: Iterable[Mapping[str, Any]], timestamp: int, x5u: str, *, collection: str
    ) -> dict[str, str]:
        """An entry of a collection's `metadata.signatures`. Arguments as for `sign`; `x5u` is where clients find
        `chain_pem`."""
        public_key = self.leaf.certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {
            "mode": MODE,
            "signature": self.sign(records, timestamp, collection=collection),
            "x5u": x5u,
            "type": "contentsignaturepki",
            "public_key": base64.b64encode(public_key).decode("ascii"),
        }


def make_key(kind: KeyKind) -> PrivateKey:
    """A new private key."""
    if kind == "rsa-4096":
        return rsa.generate_private_key(public_exponent=65537, key_size=4096)
    return ec.generate_private_key(_CURVES[kind]())


def root_profile(not_before: datetime.datetime, not_after: datetime.datetime, *, name: str = "Root") -> Profile:
    """Of the certificate that clients pin."""
    return Profile(name, not_before, not_after, is_ca=True)


def intermediate_profile(
    not_before: datetime.datetime,
    not_after: datetime.datetime,
    *,
    name: str = "Intermediate",
    signer_name: str = SIGNER_NAME,
) -> Profile:
    """Of the certificate that issues leaves, for names in the domain of `signer_name` only."""
    domain = signer_name.partition(".")[2] or signer_name
    return Profile(
        name,
        not_before,
        not_after,
        is_ca=True,
        path_length=0,
        permitted_names=(f".{domain}", domain),
        # As Mozilla's intermediates are signed; clients must know it anyway.
        digest="sha256",
    )


def leaf_profile(
    not_before: datetime.datetime, not_after: datetime.datetime, *, signer_name: str = SIGNER_NAME
) -> Profile:
    """Of the certificate whose key signs collections."""
    return Profile(signer_name, not_before, not_after, dns_names=(signer_name,))


def issue(
    profile: Profile, key: PrivateKey, issuer: Identity | None = None, *, serial_number: int | None = None
) -> Identity:
    """A certificate for `key`.

    Args:
        profile: What it says.
        key: Whose public half it is for.
        issuer: Who signs it; itself when None.
        serial_number: Default random.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, profile.common_name)])
    signing_key = key if issuer is None else issuer.key
    issuer_name = subject if issuer is None else issuer.certificate.subject
    builder = (
        x509.CertificateBuilder(
            issuer_name=issuer_name,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number() if serial_number is None else serial_number,
            not_valid_before=profile.not_before,
            not_valid_after=profile.not_after,
        )
        .add_extension(_key_usage(is_ca=profile.is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )
    if profile.is_ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=profile.path_length), critical=True)
    if profile.usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(profile.usages), critical=profile.is_ca)
    if profile.dns_names:
        names = [x509.DNSName(name) for name in profile.dns_names]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if profile.permitted_names or profile.excluded_names:
        permitted, excluded = (
            [x509.DNSName(name) for name in names] or None
            for names in (profile.permitted_names, profile.excluded_names)
        )
        builder = builder.add_extension(x509.NameConstraints(permitted, excluded), critical=True)
    return Identity(builder.sign(signing_key, _DIGESTS[profile.digest]()), key)


def make_signer(
    *,
    not_before: datetime.datetime,
    root_days: int = 3650,
    intermediate_days: int = 1825,
    leaf_days: int = 365,
    root_key: KeyKind = "ec-p384",
    signer_name: str = SIGNER_NAME,
) -> tuple[Signer, Identity, Identity]:
    """A new chain.

    Args:
        not_before: From when all of it is good.
        root_days: How long the root is good.
        intermediate_days: How long the intermediate is good.
        leaf_days: How long the leaf is good. Clients refuse the collection afterwards.
        root_key: Kind of the root's key; Mozilla's is RSA.
        signer_name: What clients must be told to expect.

    Returns:
        The signer, the root and the intermediate. The root's key belongs off line; the intermediate's issues the next
        leaf.
    """

    def after(days: int) -> datetime.datetime:
        return not_before + datetime.timedelta(days=days)

    root = issue(root_profile(not_before, after(root_days)), make_key(root_key))
    intermediate = issue(
        intermediate_profile(not_before, after(intermediate_days), signer_name=signer_name), make_key("ec-p384"), root
    )
    leaf = issue(leaf_profile(not_before, after(leaf_days), signer_name=signer_name), make_key("ec-p384"), intermediate)
    return Signer(leaf, (intermediate.certificate, root.certificate)), root, intermediate


def load_identity(certificate_pem: bytes, key_pem: bytes) -> Identity:
    """From files that `Identity` wrote. Raises `RecordError` when they are no pair of ours."""
    try:
        certificate = x509.load_pem_x509_certificates(certificate_pem)[0]
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, IndexError) as error:
        raise RecordError(f"The signing key or its certificate cannot be read: {error}.") from error
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) or (
        key.public_key() != certificate.public_key()
    ):
        raise RecordError("The signing key does not belong to its certificate. Give the pair that was made together.")
    return Identity(certificate, key)


def load_signer(chain_pem: bytes, key_pem: bytes) -> Signer:
    """From `Signer.chain_pem` and the leaf's `Identity.key_pem`. Raises `RecordError`."""
    leaf = load_identity(chain_pem, key_pem)
    return Signer(leaf, tuple(x509.load_pem_x509_certificates(chain_pem)[1:]))


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
