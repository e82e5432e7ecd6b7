"""X.509 certificates (RFC 5280) as a chain of content signatures needs them.

This reads and does not trust: which certificates may sign what is for `signature.py`. Written for Pyodide, where no
X.509 library comes without a download larger than this whole package. What is not understood is refused when the
certificate calls it critical, and ignored when it does not.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass

from pywebml.errors import SignatureError
from pywebml.settings import der
from pywebml.settings.der import DerError, Reader

CODE_SIGNING = "1.3.6.1.5.5.7.3.3"
"""The extended key usage of content signatures."""

DIGITAL_SIGNATURE, KEY_CERT_SIGN = 0, 5
"""Bits of the key usage."""

_LARGEST_CHAIN = 64 * 1024
_LARGEST_CERTIFICATE = 16 * 1024
_LONGEST_CHAIN = 6
_MOST_EXTENSIONS = 32
_MOST_NAMES = 64
_LONGEST_NAME = 255

_SIGNATURE_ALGORITHMS = {
    "1.2.840.10045.4.3.2": ("ecdsa", "sha256"),
    "1.2.840.10045.4.3.3": ("ecdsa", "sha384"),
    "1.2.840.113549.1.1.11": ("rsassa-pkcs1-v1_5", "sha256"),
    "1.2.840.113549.1.1.12": ("rsassa-pkcs1-v1_5", "sha384"),
    "1.2.840.113549.1.1.13": ("rsassa-pkcs1-v1_5", "sha512"),
}

_EC_PUBLIC_KEY = "1.2.840.10045.2.1"
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
_NULL = b"\x05\x00"
_CURVES = {"1.2.840.10045.3.1.7": "p256", "1.3.132.0.34": "p384"}
COORDINATE_BYTES = {"p256": 32, "p384": 48}
"""Curve to the size of a coordinate, and of half a raw signature."""
_RSA_BITS = range(2048, 8193)

_DNS_NAME = 0x82
_OTHER_NAMES = {0xA0, 0x81, 0xA3, 0xA4, 0xA5, 0x86, 0x87, 0x88}
_OWN_NAME_KINDS = {0x86, 0x87}
"""Addresses of the network and of the web stand in the alternative names only; every other kind can also be, or hide
in, the subject."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A certificate's public key.

    Attributes:
        kind: `rsa`, or the curve: `p256`, `p384`.
        spki: SubjectPublicKeyInfo, DER.
    """

    kind: str
    spki: bytes


@dataclass(frozen=True, slots=True)
class NameConstraints:
    """What names the certificates below may have.

    Attributes:
        permitted: DNS names and their subdomains; `.a.b` means subdomains only. None when any is permitted.
        excluded: The same, for names that are not allowed.
        other_kinds: Tags of constraints on addresses, which are not understood here: a certificate below that has such
            a name must be refused.
    """

    permitted: tuple[str, ...] | None
    excluded: tuple[str, ...]
    other_kinds: frozenset[int]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one certificate says.

    Attributes:
        der: All of it.
        tbs: The part that is signed, DER.
        signature_scheme: `ecdsa` or `rsassa-pkcs1-v1_5`.
        signature_hash: `sha256`, `sha384` or `sha512`.
        signature: DER of r and s, or the bytes of RSA.
        issuer: Name, DER.
        subject: Name, DER.
        not_before: Seconds since the epoch.
        not_after: Seconds since the epoch; the certificate is good in this second, too.
        public_key: Its own.
        is_ca: Whether it may issue certificates.
        path_length: How many issuers may come below it; None for any number.
        key_usage: Numbers of bits; None when it does not say.
        extended_key_usage: Object identifiers; None when it does not say.
        dns_names: Alternative names, in lower case.
        other_name_kinds: Tags of alternative names of other kinds.
        name_constraints: None when it has none.
    """

    der: bytes
    tbs: bytes
    signature_scheme: str
    signature_hash: str
    signature: bytes
    issuer: bytes
    subject: bytes
    not_before: int
    not_after: int
    public_key: PublicKey
    is_ca: bool = False
    path_length: int | None = None
    key_usage: frozenset[int] | None = None
    extended_key_usage: tuple[str, ...] | None = None
    dns_names: tuple[str, ...] = ()
    other_name_kinds: frozenset[int] = frozenset()
    name_constraints: NameConstraints | None = None


def parse_chain(pem: bytes) -> list[Certificate]:
    """The certificates of a PEM file, in its order.

    Raises:
        SignatureError: It is not a chain of certificates, or one of them has something critical that is not understood.
    """
    if len(pem) > _LARGEST_CHAIN:
        raise _refused(f"the certificate chain has more than {_LARGEST_CHAIN} bytes")
    blocks: list[bytes] = []
    at = 0
    for match in _PEM.finditer(pem):
        if pem[at : match.start()].strip():
            break
        blocks.append(match[1])
        at = match.end()
    if not blocks or pem[at:].strip():
        raise _refused("the certificate chain is not in PEM form")
    if len(blocks) > _LONGEST_CHAIN:
        raise _refused(f"the certificate chain has {len(blocks)} certificates, more than {_LONGEST_CHAIN}")
    chain = []
    for number, block in enumerate(blocks, 1):
        try:
            chain.append(_parse(binascii.a2b_base64(b"".join(block.split()), strict_mode=True)))
        except (DerError, binascii.Error) as error:
            raise _refused(f"certificate {number} of {len(blocks)} of the chain cannot be read: {error}") from error
    return chain


def parse_certificate(data: bytes) -> Certificate:
    """A certificate in DER. Raises `SignatureError`."""
    try:
        return _parse(data)
    except DerError as error:
        raise _refused(f"a certificate cannot be read: {error}") from error


def raw_ecdsa_signature(signature: bytes, curve: str) -> bytes:
    """r and s one after the other, as Web Cryptography wants them, from the DER that certificates have.

    Args:
        signature: DER: SEQUENCE of two INTEGERs.
        curve: Of the key: `p256`, `p384`.

    Raises:
        SignatureError: It is no such DER, or a number does not fit the curve.
    """
    size = COORDINATE_BYTES[curve]
    try:
        pair = der.read_only(signature, der.SEQUENCE, "an ECDSA signature")
        numbers = [der.integer(pair.read(der.INTEGER)) for _ in range(2)]
        pair.end()
    except DerError as error:
        raise _refused(str(error)) from error
    if any(not 0 < number < 1 << (8 * size) for number in numbers):
        raise _refused(f"an ECDSA signature does not fit the curve {curve}")
    return b"".join(number.to_bytes(size, "big") for number in numbers)


def _parse(data: bytes) -> Certificate:
    if len(data) > _LARGEST_CERTIFICATE:
        raise DerError(f"it has more than {_LARGEST_CERTIFICATE} bytes")
    outer = der.read_only(data, der.SEQUENCE, "the certificate")
    tbs = outer.read_whole(der.SEQUENCE)
    algorithm = outer.read_whole(der.SEQUENCE)
    signature = der.whole_bytes(outer.read(der.BIT_STRING))
    outer.end()

    body = der.read_only(tbs, der.SEQUENCE, "the certificate's body")
    version = body.enter(0xA0, "the version") if body.peek() == 0xA0 else None
    if version is None or der.integer(version.read(der.INTEGER)) != 2:
        raise DerError("it is not of version 3")
    version.end()
    der.integer(body.read(der.INTEGER))
    # The algorithm stands twice, and only this one is signed.
    if body.read_whole(der.SEQUENCE) != algorithm:
        raise DerError("it names two signature algorithms")
    scheme, digest = _signature_algorithm(algorithm)
    issuer = body.read_whole(der.SEQUENCE)
    validity = body.enter(der.SEQUENCE, "the validity")
    not_before, not_after = _time(validity), _time(validity)
    validity.end()
    subject = body.read_whole(der.SEQUENCE)
    public_key = _public_key(body.read_whole(der.SEQUENCE))
    extensions = _Extensions()
    if not body.at_end():
        wrapper = body.enter(0xA3, "the extensions")
        extensions.read(wrapper.enter(der.SEQUENCE, "the extensions"))
        wrapper.end()
    body.end()
    return Certificate(
        der=data,
        tbs=tbs,
        signature_scheme=scheme,
        signature_hash=digest,
        signature=signature,
        issuer=issuer,
        subject=subject,
        not_before=not_before,
        not_after=not_after,
        public_key=public_key,
        is_ca=extensions.is_ca,
        path_length=extensions.path_length,
        key_usage=extensions.key_usage,
        extended_key_usage=extensions.extended_key_usage,
        dns_names=extensions.dns_names,
        other_name_kinds=extensions.other_name_kinds,
        name_constraints=extensions.name_constraints,
    )


def _signature_algorithm(data: bytes) -> tuple[str, str]:
    fields = der.read_only(data, der.SEQUENCE, "the signature algorithm")
    name = der.oid(fields.read(der.OID))
    if name not in _SIGNATURE_ALGORITHMS:
        raise DerError(f"it is signed with the algorithm {name}, which is not supported")
    scheme, digest = _SIGNATURE_ALGORITHMS[name]
    if scheme != "ecdsa" and fields.read_whole(0x05) != _NULL:
        raise DerError("the signature algorithm's parameters are malformed")
    fields.end()
    return scheme, digest


def _time(validity: Reader) -> int:
    tag = validity.peek()
    if tag not in {der.UTC_TIME, der.GENERALIZED_TIME}:
        raise DerError("the validity has no time")
    return der.time(tag, validity.read(tag))


def _public_key(spki: bytes) -> PublicKey:
    fields = der.read_only(spki, der.SEQUENCE, "the public key")
    algorithm = fields.enter(der.SEQUENCE, "the public key's algorithm")
    key = der.whole_bytes(fields.read(der.BIT_STRING))
    fields.end()
    name = der.oid(algorithm.read(der.OID))
    if name == _EC_PUBLIC_KEY:
        curve = _CURVES.get(der.oid(algorithm.read(der.OID)))
        algorithm.end()
        if curve is None:
            raise DerError("the public key is on a curve that is not supported")
        # 04: both coordinates. That the point is on the curve is for whoever uses the key.
        if len(key) != 1 + 2 * COORDINATE_BYTES[curve] or key[0] != 0x04:
            raise DerError("the public key is no uncompressed point")
        return PublicKey(curve, spki)
    if name == _RSA_ENCRYPTION:
        if algorithm.read_whole(0x05) != _NULL:
            raise DerError("the public key's parameters are malformed")
        algorithm.end()
        numbers = der.read_only(key, der.SEQUENCE, "the RSA key")
        modulus, exponent = (der.integer(numbers.read(der.INTEGER)) for _ in range(2))
        numbers.end()
        usable = modulus > 0 and modulus.bit_length() in _RSA_BITS and modulus % 2
        if not usable or not 3 <= exponent < 1 << 32 or exponent % 2 == 0:
            raise DerError("the RSA key has a size or exponent that is not supported")
        return PublicKey("rsa", spki)
    raise DerError(f"the public key has the algorithm {name}, which is not supported")


class _Extensions:
    """The extensions of one certificate, as they are read."""

    def __init__(self) -> None:
        self.is_ca = False
        self.path_length: int | None = None
        self.key_usage: frozenset[int] | None = None
        self.extended_key_usage: tuple[str, ...] | None = None
        self.dns_names: tuple[str, ...] = ()
        self.other_name_kinds: frozenset[int] = frozenset()
        self.name_constraints: NameConstraints | None = None

    def read(self, extensions: Reader) -> None:
        readers: dict[str, Callable[[bytes], None]] = {
            "2.5.29.19": self._basic_constraints,
            "2.5.29.15": self._key_usage,
            "2.5.29.37": self._extended_key_usage,
            "2.5.29.17": self._alternative_names,
            "2.5.29.30": self._name_constraints,
        }
        seen: set[str] = set()
        for content in extensions.each(der.SEQUENCE):
            fields = Reader(content, "an extension")
            name = der.oid(fields.read(der.OID))
            critical = False
            if fields.peek() == der.BOOLEAN:
                critical = der.boolean(fields.read(der.BOOLEAN))
                if not critical:
                    raise DerError(f"the extension {name} spells out a default")
            value = fields.read(der.OCTET_STRING)
            fields.end()
            if name in seen:
                raise DerError(f"the extension {name} is there twice")
            seen.add(name)
            if len(seen) > _MOST_EXTENSIONS:
                raise DerError(f"it has more than {_MOST_EXTENSIONS} extensions")
            if name in readers:
                readers[name](value)
            elif critical:
                raise DerError(f"the extension {name} is critical and not supported")

    def _basic_constraints(self, value: bytes) -> None:
        fields = der.read_only(value, der.SEQUENCE, "the basic constraints")
        if fields.peek() == der.BOOLEAN:
            self.is_ca = der.boolean(fields.read(der.BOOLEAN))
            if not self.is_ca:
                raise DerError("the basic constraints spell out a default")
        if fields.peek() == der.INTEGER:
            self.path_length = der.integer(fields.read(der.INTEGER))
            if not self.is_ca or self.path_length < 0:
                raise DerError("the basic constraints have a path length that means nothing")
        fields.end()

    def _key_usage(self, value: bytes) -> None:
        outer = Reader(value, "the key usage")
        self.key_usage = der.named_bits(outer.read(der.BIT_STRING))
        outer.end()

    def _extended_key_usage(self, value: bytes) -> None:
        usages = der.read_only(value, der.SEQUENCE, "the extended key usage")
        self.extended_key_usage = tuple(der.oid(usage) for usage in usages.each(der.OID))
        if not 0 < len(self.extended_key_usage) <= _MOST_NAMES:
            raise DerError("the extended key usage has no entry, or too many")

    def _alternative_names(self, value: bytes) -> None:
        names = der.read_only(value, der.SEQUENCE, "the alternative names")
        dns_names, others = _general_names(names)
        if not dns_names and not others:
            raise DerError("the alternative names are empty")
        self.dns_names, self.other_name_kinds = tuple(dns_names), frozenset(others)

    def _name_constraints(self, value: bytes) -> None:
        fields = der.read_only(value, der.SEQUENCE, "the name constraints")
        permitted: list[str] | None = None
        excluded: list[str] = []
        kinds: set[int] = set()
        if fields.peek() == 0xA0:
            names, kinds = _subtrees(fields.enter(0xA0, "the permitted names"))
            permitted = names or None
        if fields.peek() == 0xA1:
            excluded, more = _subtrees(fields.enter(0xA1, "the excluded names"))
            kinds |= more
        fields.end()
        if permitted is None and not excluded and not kinds:
            raise DerError("the name constraints are empty")
        if kinds - _OWN_NAME_KINDS:
            raise DerError("the name constraints are about a kind of name that is not supported")
        self.name_constraints = NameConstraints(
            None if permitted is None else tuple(permitted), tuple(excluded), frozenset(kinds)
        )


def _subtrees(subtrees: Reader) -> tuple[list[str], set[int]]:
    """DNS names, and the tags of names of other kinds."""
    dns_names: list[str] = []
    others: set[int] = set()
    for content in subtrees.each(der.SEQUENCE):
        # RFC 5280 allows a base and nothing else.
        names, kinds = _general_names(Reader(content, "a name constraint"), most=1)
        dns_names += names
        others |= kinds
        if (not names and not kinds) or len(dns_names) > _MOST_NAMES:
            raise DerError("a name constraint is empty, or there are too many")
    return dns_names, others


def _general_names(names: Reader, most: int = _MOST_NAMES) -> tuple[list[str], set[int]]:
    dns_names: list[str] = []
    others: set[int] = set()
    count = 0
    while not names.at_end():
        count += 1
        tag = names.peek()
        if count > most:
            raise DerError(f"there are more than {most} names")
        if tag == _DNS_NAME:
            dns_names.append(_dns_name(names.read(tag)))
        elif tag in _OTHER_NAMES:
            names.read(tag)
            others.add(tag)
        else:
            raise DerError(f"a name has the tag 0x{tag:02x}")
    return dns_names, others


def _dns_name(content: bytes) -> str:
    if not 0 < len(content) <= _LONGEST_NAME or any(not 0x21 <= byte <= 0x7E for byte in content):
        raise DerError("a DNS name is malformed")
    return content.decode("ascii").lower()


def _refused(reason: str) -> SignatureError:
    return SignatureError(f"The signer's certificates are not usable: {reason}.", reason=reason)
