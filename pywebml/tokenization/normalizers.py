"""Normalizers: the text is rewritten before it is split.

Each equals the component of the same name in the Rust `tokenizers` library, code point for code point. Each works in
two ways with one result: `normalize` on plain text, at the speed of C, and `align`, which keeps for every character
its place in the original.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.alignment import Aligned
from pywebml.tokenization.byte_level import encode_bytes
from pywebml.tokenization.fields import Fields, unknown_component
from pywebml.tokenization.patterns import Pattern
from pywebml.tokenization.precompiled import Precompiled, read_precompiled
from pywebml.tokenization.unicode_forms import Form, normalize_unicode, normalize_unicode_aligned

# How many code points a translation table remembers. More than any one script has; hostile text beyond it only
# gets slower.
_REMEMBERED = 1 << 16


class Normalizer(Protocol):
    """Rewrites text."""

    def normalize(self, text: str) -> str:
        """The rewritten text."""

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""


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


def _lower(character: str) -> str:
    return tables.LOWERCASE.get(ord(character)) or character.lower()


class UnicodeForm:
    """`NFC`, `NFD`, `NFKC`, `NFKD`."""

    def __init__(self, form: Form) -> None:
        self._form = form

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return normalize_unicode(self._form, text)

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        return normalize_unicode_aligned(self._form, piece)


class Lowercase:
    """Lower case of each character by itself: a final sigma is a sigma like any other."""

    def __init__(self) -> None:
        self._table = _Translation(_lower)

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return text.translate(self._table)

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        return piece.changed(piece.text.lower()) if piece.text.isascii() else piece.rewritten(_lower)


class StripAccents:
    """Drops combining marks. What carries its accent inside keeps it: put `NFD` before."""

    def __init__(self) -> None:
        self._marks = re.compile(f"[{tables.character_class(tables.COMBINING_MARK)}]+")

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return text if text.isascii() else self._marks.sub("", text)

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        return piece if piece.text.isascii() else piece.rewritten(self.normalize)


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

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        if not self._strip_accents or piece.text.isascii() or not self._reordered.search(piece.text):
            return piece.rewritten(self._rewritten_by(self._whole))
        decomposed = normalize_unicode_aligned("NFD", piece.rewritten(self._rewritten_by(self._before)))
        return decomposed.rewritten(self._rewritten_by(self._after))

    @staticmethod
    def _rewritten_by(table: _Translation) -> Callable[[str], str]:
        return lambda character: table[ord(character)]

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

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        for step in self._steps:
            piece = step.align(piece)
        return piece


class CharacterWise:
    """Each character by itself becomes others: `Nmt`, `ByteLevel`."""

    def __init__(self, rewrite: Callable[[str], str]) -> None:
        self._table = _Translation(rewrite)

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return text.translate(self._table)

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        table = self._table
        return piece.rewritten(lambda character: table[ord(character)])


class Replace:
    """Puts `content` where a pattern matches."""

    def __init__(self, pattern: Pattern, content: str, literal: str | None) -> None:
        self._pattern = pattern
        self._content = content
        self._literal = literal

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        if self._literal:
            return text.replace(self._literal, self._content)
        if not text:
            return text
        spans = self._pattern.covering(text)
        return "".join(self._content if is_match else text[start:end] for start, end, is_match in spans)

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        if not piece.text:
            return piece
        spans = self._pattern.spans(piece.text)
        return piece.replaced(spans, self._content) if spans else piece


class Prepend:
    """Puts a prefix before text that is not empty."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return self._prefix + text if text else text

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        return piece.prepended(self._prefix) if piece.text and self._prefix else piece


class Strip:
    """Drops white space at the ends."""

    def __init__(self, *, left: bool, right: bool) -> None:
        space = tables.character_class(tables.WHITESPACE)
        self._left = re.compile(f"[{space}]*" if left else "")
        # Anchored at a start that is no space: a run of spaces inside is looked at once.
        self._right = re.compile(f"(?<![{space}])[{space}]+\\Z" if right else r"(?!)")

    def _kept(self, text: str) -> tuple[int, int]:
        match = self._left.match(text)
        start = match.end() if match else 0
        trailing = self._right.search(text, start)
        return start, trailing.start() if trailing else len(text)

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        start, end = self._kept(text)
        return text[start:end]

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        start, end = self._kept(piece.text)
        if (start, end) == (0, len(piece.text)):
            return piece
        return piece.picked(piece.text[start:end], range(start, end))


def _bert(fields: Fields) -> Normalizer:
    return BertNormalizer(
        clean_text=fields.boolean("clean_text"),
        handle_chinese_chars=fields.boolean("handle_chinese_chars"),
        strip_accents=fields.boolean("strip_accents") if fields.has("strip_accents") else None,
        lowercase=fields.boolean("lowercase"),
    )


def _sequence(fields: Fields) -> Normalizer:
    return NormalizerSequence([build_normalizer(*item) for item in fields.sequence("normalizers")])


_NMT_DROPPED = frozenset((*range(0x1, 0x9), 0xB, *range(0xE, 0x20), 0x7F, 0x8F, 0x9F))
_NMT_SPACES = frozenset((0x9, 0xA, 0xC, 0xD, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD))


def _nmt(character: str) -> str:
    point = ord(character)
    if point in _NMT_DROPPED:
        return ""
    return " " if point in _NMT_SPACES else character


def read_pattern(fields: Fields, name: str) -> tuple[Pattern, str | None]:
    """A pattern of `Replace` or `Split`, and its text when it is a literal one.

    Raises:
        TokenizerError: It is malformed or not supported.
    """
    body = fields.child(name)
    if body.has("Regex"):
        return Pattern.parse(body.string("Regex")), None
    literal = body.string("String")
    return Pattern.literal(literal), literal


def _replace(fields: Fields) -> Normalizer:
    pattern, literal = read_pattern(fields, "pattern")
    return Replace(pattern, fields.string("content"), literal)


def _precompiled(fields: Fields) -> Precompiled:
    return read_precompiled(fields.string("precompiled_charsmap"), fields.place_of("precompiled_charsmap"))


NORMALIZERS: Mapping[str, Callable[[Fields], Normalizer]] = {
    "BertNormalizer": _bert,
    "ByteLevel": lambda fields: CharacterWise(encode_bytes),
    "Lowercase": lambda fields: Lowercase(),
    "NFC": lambda fields: UnicodeForm("NFC"),
    "NFD": lambda fields: UnicodeForm("NFD"),
    "NFKC": lambda fields: UnicodeForm("NFKC"),
    "NFKD": lambda fields: UnicodeForm("NFKD"),
    "Nmt": lambda fields: CharacterWise(_nmt),
    "Precompiled": _precompiled,
    "Prepend": lambda fields: Prepend(fields.string("prepend")),
    "Replace": _replace,
    "Sequence": _sequence,
    "Strip": lambda fields: Strip(left=fields.boolean("strip_left"), right=fields.boolean("strip_right")),
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
