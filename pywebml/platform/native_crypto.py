"""Signatures in CPython, by the package `cryptography`."""

from __future__ import annotations

from pywebml.errors import SettingsError, SignatureError

_CURVES = {"p256": ("secp256r1", 32), "p384": ("secp384r1", 48)}
_ECDSA_HASHES = ("sha256", "sha384")
_RSA_HASHES = ("sha256", "sha384", "sha512")

ALGORITHMS = frozenset(
    [f"ecdsa-{curve}-{digest}" for curve in _CURVES for digest in _ECDSA_HASHES]
    + [f"rsassa-pkcs1-v1_5-{digest}" for digest in _RSA_HASHES]
)
"""What `verify_signature` knows, here and in the browser."""


def verify_signature(algorithm: str, public_key_spki: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` is that of `data` by this key. See `Platform.verify_signature`."""
    if algorithm not in ALGORITHMS:
        reason = f"signatures of the kind {algorithm!r} are not supported"
        raise SignatureError(f"S{reason[1:]}.", reason=reason)
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
        from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
        from cryptography.hazmat.primitives.serialization import load_der_public_key
    except ImportError as error:
        raise SettingsError(
            "Signatures of settings cannot be checked without the package 'cryptography'. Install it: "
            "pip install 'pywebml[native]'."
        ) from error
    digests: dict[str, hashes.HashAlgorithm] = {
        "sha256": hashes.SHA256(),
        "sha384": hashes.SHA384(),
        "sha512": hashes.SHA512(),
    }
    scheme, digest = algorithm.rsplit("-", 1)
    try:
        key = load_der_public_key(public_key_spki)
        if scheme == "rsassa-pkcs1-v1_5":
            if not isinstance(key, rsa.RSAPublicKey):
                return False
            key.verify(signature, data, padding.PKCS1v15(), digests[digest])
        else:
            curve, size = _CURVES[scheme.removeprefix("ecdsa-")]
            if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve or len(signature) != 2 * size:
                return False
            r, s = (int.from_bytes(half, "big") for half in (signature[:size], signature[size:]))
            key.verify(encode_dss_signature(r, s), data, ec.ECDSA(digests[digest]))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        # A key that is no key has signed nothing.
        return False
    return True
