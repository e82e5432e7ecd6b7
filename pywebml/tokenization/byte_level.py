"""The alphabet of byte-level tokenizers: a printable character for each byte.

Source: GPT-2's tokenizer. Bytes that print stand for themselves, the others follow from U+0100 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS: Final = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

CHARACTERS: Final[Mapping[int, str]] = {
    **{byte: chr(byte) for byte in _PRINTABLE},
    **{byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)},
}
"""Byte to character."""

BYTES: Final[Mapping[str, int]] = {character: byte for byte, character in CHARACTERS.items()}
"""Character to byte."""

SPACE: Final = CHARACTERS[0x20]

# Bytes as Latin-1 text, then each to its character: two calls in C for any text.
_FROM_LATIN: Final[dict[int, str]] = dict(CHARACTERS)


def encode_bytes(text: str) -> str:
    """The UTF-8 bytes of a text, as characters."""
    return text.encode().decode("latin-1").translate(_FROM_LATIN)


def decode_bytes(token: str) -> bytes:
    """The bytes that the characters of a token stand for; a token with any other character is its own UTF-8."""
    try:
        return bytes([BYTES[character] for character in token])
    except KeyError:
        return token.encode()
