"""Normalizers: the text is rewritten before it is split.

Each equals the component of the same name in the Rust `tokenizers` library, code point for code point.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Literal, Protocol

from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.fields import Fields, unknown_component

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]

# How many code points a translation table remembers. More than any one script has; hostile text beyond it only
# gets slower.
_REMEMBERED = 1 << 16


class Normalizer(Protocol):
    """Rewrites text."""

    def normalize(self, text: str) -> str:
        """The rewritten text."""


class _Translation(dict[int, str]):
    """A table for `str.translate` that works out each code point on first sight.

    One call in C then does what would be a Python loop over the characters.
    """

    def __init__(self, rewrite: Callable[[str], str]) -> None:
        super().__init__()
        self._rewrite = rewrite

    def __missing__(self, point: int) -> str:
        replacement = self._rewrite(chr(point))
        if len(self) < _REMEMBERED:
            self[point] = replacement
        return replacement


@cache
def _unknown_to(form: Form) -> re.Pattern[str]:
    sets = [tables.UNKNOWN_TO_CANONICAL]
    if form in ("NFKC", "NFKD"):
        sets.append(tables.UNKNOWN_TO_COMPATIBILITY)
    return re.compile(f"([{tables.character_class(*sets)}])")


def normalize_unicode(form: Form, text: str) -> str:
    """A Unicode normalization form, as of the version that the Rust library knows."""
    if text.isascii():
        return text
    # What that version did not know is an inert starter to it: nothing composes with it or moves past it. So the
    # stretches between such characters (odd positions of the split) can be normalized alone.
    parts = _unknown_to(form).split(text)
    for index in range(0, len(parts), 2):
        parts[index] = unicodedata.normalize(form, parts[index])
    return "".join(parts)


def _lower(character: str) -> str:
    return tables.LOWERCASE.get(ord(character)) or character.lower()


class UnicodeForm:
    """`NFC`, `NFD`, `NFKC`, `NFKD`."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return normalize_unicode(self._form, text)


class Lowercase:
    """Lower case of each character by itself: a final sigma is a sigma like any other."""

    def __init__(self) -> None:
        self._table = _Translation(_lower)

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return text.translate(self._table)


class StripAccents:
    """Drops combining marks. What carries its accent inside keeps it: put `NFD` before."""

    def __init__(self) -> None:
        self._marks = re.compile(f"[{tables.character_class(tables.COMBINING_MARK)}]+")

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return text if text.isascii() else self._marks.sub("", text)


class BertNormalizer:
    """What BERT does to text before it is split.

    Args:
        clean_text: Drop control characters, turn every white space into a space.
        handle_chinese_chars: Put spaces around ideographs.
        strip_accents: Decompose and drop non-spacing marks; None: as `lowercase` says.
        lowercase: Lower case, each character by itself.
    """

    def __init__(
        self,
        *,
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: bool | None,
        lowercase: bool,
    ) -> None:
        self._clean_text = clean_text
        self._handle_chinese_chars = handle_chinese_chars
        self._strip_accents = lowercase if strip_accents is None else strip_accents
        self._lowercase = lowercase
        self._is_control = tables.membership(tables.CONTROL)
        self._is_whitespace = tables.membership(tables.WHITESPACE)
        self._is_chinese = tables.membership(tables.CHINESE)
        self._is_mark = tables.membership(tables.NONSPACING_MARK)
        self._before = _Translation(self._before_decomposition)
        self._after = _Translation(self._after_decomposition)
        self._whole = _Translation(self._whole_way)
        self._reordered = re.compile(f"[{tables.character_class(tables.REORDERED_MARK)}]")

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        # Decomposition looks at more than one character only to put marks in order. Nearly all marks are then
        # dropped, so that their order is of no account: unless the text has one of those that stay, everything is
        # done character by character in one pass.
        if not self._strip_accents or text.isascii() or not self._reordered.search(text):
            return text.translate(self._whole)
        return normalize_unicode("NFD", text.translate(self._before)).translate(self._after)

    def _before_decomposition(self, character: str) -> str:
        point = ord(character)
        if self._clean_text:
            if self._is_control(point):
                return ""
            if self._is_whitespace(point):
                return " "
        if self._handle_chinese_chars and self._is_chinese(point):
            return f" {character} "
        return character

    def _after_decomposition(self, character: str) -> str:
        if self._strip_accents and self._is_mark(ord(character)):
            return ""
        return _lower(character) if self._lowercase else character

    def _whole_way(self, character: str) -> str:
        text = self._before_decomposition(character)
        if self._strip_accents:
            text = normalize_unicode("NFD", text)
        return "".join(map(self._after_decomposition, text))


class NormalizerSequence:
    """Several normalizers, one after the other."""

    def __init__(self, steps: Sequence[Normalizer]) -> None:
        self._steps = tuple(steps)

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        for step in self._steps:
            text = step.normalize(text)
        return text


def _bert(fields: Fields) -> Normalizer:
    return BertNormalizer(
        clean_text=fields.boolean("clean_text"),
        handle_chinese_chars=fields.boolean("handle_chinese_chars"),
        strip_accents=fields.boolean("strip_accents") if fields.has("strip_accents") else None,
        lowercase=fields.boolean("lowercase"),
    )


def _sequence(fields: Fields) -> Normalizer:
    return NormalizerSequence([build_normalizer(*item) for item in fields.sequence("normalizers")])


NORMALIZERS: Mapping[str, Callable[[Fields], Normalizer]] = {
    "BertNormalizer": _bert,
    "Lowercase": lambda fields: Lowercase(),
    "NFC": lambda fields: UnicodeForm("NFC"),
    "NFD": lambda fields: UnicodeForm("NFD"),
    "NFKC": lambda fields: UnicodeForm("NFKC"),
    "NFKD": lambda fields: UnicodeForm("NFKD"),
    "Sequence": _sequence,
    "StripAccents": lambda fields: StripAccents(),
}
"""Type name in `tokenizer.json` to builder."""


def build_normalizer(value: object, place: str) -> Normalizer:
    """Build a normalizer from its JSON.

    Args:
        value: The parsed JSON; null is the normalizer that changes nothing.
        place: Where it stands in the file, for messages.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    if value is None:
        return NormalizerSequence(())
    fields = Fields(value, place)
    name = fields.string("type")
    builder = NORMALIZERS.get(name)
    if builder is None:
        raise unknown_component("normalizer", name, place, sorted(NORMALIZERS))
    return builder(fields)
