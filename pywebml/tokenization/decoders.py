"""Decoders: tokens become text again.

Each equals the component of the same name in the Rust `tokenizers` library: a list of tokens in, a list of strings
out, which are joined in the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final, TypeAlias

from pywebml.tokenization.byte_level import decode_bytes
from pywebml.tokenization.fields import Fields, unknown_component, wrong_type
from pywebml.tokenization.normalizers import read_pattern

Decoder: TypeAlias = Callable[[list[str]], list[str]]

_UNREADABLE: Final = "\ufffd"
_WORD_PIECE_CLEANUP: Final[Sequence[tuple[str, str]]] = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
_CLEANUP: Final = tuple(rule for rule in _WORD_PIECE_CLEANUP if rule[0] != " do not")


def clean_up(text: str) -> str:
    """Take out the spaces that tokens of English leave, as `clean_up_tokenization_spaces` of transformers does."""
    return _replaced(text, _CLEANUP)


def _replaced(text: str, rules: Sequence[tuple[str, str]]) -> str:
    for old, new in rules:
        text = text.replace(old, new)
    return text


def _byte_level(fields: Fields) -> Decoder:
    def decode(tokens: list[str]) -> list[str]:
        return [b"".join(map(decode_bytes, tokens)).decode(errors="replace")]

    return decode


def _word_piece(fields: Fields) -> Decoder:
    prefix, cleanup = fields.string("prefix"), fields.boolean("cleanup")

    def decode(tokens: list[str]) -> list[str]:
        found: list[str] = []
        for index, token in enumerate(tokens):
            text = token
            if index:
                text = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
            found.append(_replaced(text, _WORD_PIECE_CLEANUP) if cleanup else text)
        return found

    return decode


def _metaspace(fields: Fields) -> Decoder:
    replacement = fields.string("replacement")
    if len(replacement) != 1:
        raise wrong_type(fields.place_of("replacement"), "one character", replacement)
    scheme = fields.string("prepend_scheme", "always")
    if fields.has("add_prefix_space") and not fields.boolean("add_prefix_space"):
        scheme = "never"
    first = " " if scheme == "never" else ""

    def decode(tokens: list[str]) -> list[str]:
        return [token.replace(replacement, " " if index else first) for index, token in enumerate(tokens)]

    return decode


def _bpe(fields: Fields) -> Decoder:
    suffix = fields.string("suffix")

    def decode(tokens: list[str]) -> list[str]:
        last = len(tokens) - 1
        return [token.replace(suffix, " " if index < last else "") for index, token in enumerate(tokens)]

    return decode


def _ctc(fields: Fields) -> Decoder:
    pad, delimiter = fields.string("pad_token"), fields.string("word_delimiter_token")
    cleanup = fields.boolean("cleanup")

    def decode(tokens: list[str]) -> list[str]:
        found: list[str] = []
        for token, _ in groupby(tokens):
            text = token.replace(pad, "")
            if cleanup:
                text = _replaced(text, _WORD_PIECE_CLEANUP).replace(delimiter, " ")
            if text:
                found.append(text)
        return found

    return decode


def _replace(fields: Fields) -> Decoder:
    pattern, literal = read_pattern(fields, "pattern")
    content = fields.string("content")

    def decode_one(token: str) -> str:
        if literal:
            return token.replace(literal, content)
        if not token:
            return token
        return "".join(content if match else token[start:end] for start, end, match in pattern.covering(token))

    return lambda tokens: list(map(decode_one, tokens))


def _strip(fields: Fields) -> Decoder:
    content, start, stop = fields.string("content"), fields.natural("start"), fields.natural("stop")
    if len(content) != 1:
        raise wrong_type(fields.place_of("content"), "one character", content)

    def decode_one(token: str) -> str:
        left = min(len(token) - len(token.lstrip(content)), start)
        right = min(len(token) - len(token.rstrip(content)), stop)
        # The library fails when both cuts overlap; nothing is left then.
        return token[left : max(len(token) - right, left)]

    return lambda tokens: list(map(decode_one, tokens))


_BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>")


def _byte_fallback(fields: Fields) -> Decoder:
    def decode(tokens: list[str]) -> list[str]:
        found: list[str] = []
        waiting = bytearray()
        for token in tokens:
            byte = _BYTE_TOKEN.fullmatch(token)
            if byte is not None:
                waiting.append(int(byte[1], 16))
                continue
            found += _read_bytes(waiting)
            waiting.clear()
            found.append(token)
        return found + _read_bytes(waiting)

    return decode


def _read_bytes(data: bytearray) -> list[str]:
    if not data:
        return []
    try:
        return [data.decode()]
    except UnicodeDecodeError:
        return [_UNREADABLE] * len(data)


def _fuse(fields: Fields) -> Decoder:
    return lambda tokens: ["".join(tokens)]


def _sequence(fields: Fields) -> Decoder:
    steps = [_build(*item) for item in fields.sequence("decoders")]

    def decode(tokens: list[str]) -> list[str]:
        for step in steps:
            tokens = step(tokens)
        return tokens

    return decode


DECODERS: Mapping[str, Callable[[Fields], Decoder]] = {
    "BPEDecoder": _bpe,
    "ByteFallback": _byte_fallback,
    "ByteLevel": _byte_level,
    "CTC": _ctc,
    "Fuse": _fuse,
    "Metaspace": _metaspace,
    "Replace": _replace,
    "Sequence": _sequence,
    "Strip": _strip,
    "WordPiece": _word_piece,
}
"""Type name in `tokenizer.json` to builder."""


def _build(value: object, place: str) -> Decoder:
    fields = Fields(value, place)
    name = fields.string("type")
    builder = DECODERS.get(name)
    if builder is None:
        raise unknown_component("decoder", name, place, sorted(DECODERS))
    return builder(fields)


def build_decoder(value: object, place: str) -> Callable[[list[str]], str]:
    """Build a decoder from its JSON.

    Args:
        value: The parsed JSON; null puts spaces between the tokens.
        place: Where it stands in the file, for messages.

    Returns:
        What makes text of tokens.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    if value is None:
        return " ".join
    decoder = _build(value, place)
    return lambda tokens: "".join(decoder(tokens))
