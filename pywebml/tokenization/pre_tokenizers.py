"""Pre-tokenizers: the normalized text is split into words, which the model then splits into tokens.

Each equals the component of the same name in the Rust `tokenizers` library. All of them are sequences of small steps,
which either split text or rewrite it. Each step works in two ways with one result: on plain text, at the speed of C,
and on text that keeps the place of each character in the original.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Final, Protocol

from pywebml.errors import TokenizerError
from pywebml.tokenization import code_points as points
from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.alignment import Aligned
from pywebml.tokenization.byte_level import encode_bytes
from pywebml.tokenization.code_points import CodePoints
from pywebml.tokenization.fields import Fields, unknown_component, wrong_type
from pywebml.tokenization.normalizers import read_pattern
from pywebml.tokenization.patterns import Pattern, ascii_class
from pywebml.tokenization.unicode_categories import CATEGORIES
from pywebml.tokenization.unicode_scripts import SCRIPTS


class Step(Protocol):
    """Splits text, or rewrites it."""

    splits: bool
    """Whether it can make several pieces of one."""
    needs_start: bool
    """Whether the start of the original text is treated differently."""

    def split(self, text: str, at_start: bool) -> list[str]:
        """The pieces of a text that is not empty, none of them empty.

        Args:
            text: To split.
            at_start: Whether it begins where the original text begins.
        """

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The same with places; a piece whose `base` is 0 is at the start."""


class PreTokenizer:
    """Steps, one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.needs_start = any(step.needs_start for step in steps)

    def split(self, text: str, at_start: bool = True) -> list[str]:
        """The words of a text."""
        return split_by(self.steps, text, at_start=at_start)

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The same with places."""
        pieces = [piece] if piece.text else []
        for step in self.steps:
            pieces = [part for whole in pieces for part in step.split_aligned(whole)]
        return pieces


def split_by(steps: Sequence[Step], text: str, *, at_start: bool) -> list[str]:
    """The words that steps make of a text."""
    words = [text] if text else []
    for step in steps:
        if len(words) == 1:
            words = step.split(words[0], at_start)
        else:
            words = [part for index, word in enumerate(words) for part in step.split(word, at_start and index == 0)]
    return words


# ------------------------------------------------------------------------------------------- steps that split


class Find:
    """The words are the matches of an expression; what lies between them is dropped.

    Args:
        write: Writes the expression, given how to write a set of characters. It never matches the empty string.
    """

    splits = True
    needs_start = False

    def __init__(self, write: Callable[[Callable[[CodePoints], str]], str]) -> None:
        self._write = write
        self._ascii = re.compile(write(ascii_class))
        self._any: re.Pattern[str] | None = None

    def _pattern(self, text: str) -> re.Pattern[str]:
        if text.isascii():
            return self._ascii
        if self._any is None:
            self._any = re.compile(self._write(points.character_class))
        return self._any

    def split(self, text: str, at_start: bool) -> list[str]:
        """The matches."""
        found: list[str] = self._pattern(text).findall(text)
        return found

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The matches, with places."""
        return [piece.slice(*match.span()) for match in self._pattern(piece.text).finditer(piece.text)]


class Split:
    """Splits where a pattern matches.

    Args:
        pattern: Finds the delimiters; or, inverted, what lies between them.
        behavior: What becomes of them: `Removed`, `Isolated`, `MergedWithPrevious`, `MergedWithNext`, `Contiguous`.
        invert: See `pattern`.
    """

    splits = True
    needs_start = False

    def __init__(self, pattern: Pattern, behavior: str, *, invert: bool) -> None:
        self._pattern = pattern
        self._behavior = behavior
        self._invert = invert

    def split(self, text: str, at_start: bool) -> list[str]:
        """The pieces."""
        if self._behavior == "Isolated":
            return self._pattern.pieces(text)
        if self._behavior == "Removed" and self._invert:
            return self._pattern.matches(text)
        return [text[start:end] for start, end in self._spans(text)]

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The pieces, with places."""
        return [piece.slice(start, end) for start, end in self._spans(piece.text)]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        ranges = [(start, end, match != self._invert) for start, end, match in self._pattern.covering(text)]
        return [(start, end) for start, end in _BEHAVIORS[self._behavior](ranges) if start < end]


_Ranges = list[tuple[int, int, bool]]
_Spans = list[tuple[int, int]]


def _removed(ranges: _Ranges) -> _Spans:
    return [(start, end) for start, end, match in ranges if not match]


def _isolated(ranges: _Ranges) -> _Spans:
    return [(start, end) for start, end, _ in ranges]


def _contiguous(ranges: _Ranges) -> _Spans:
    found: _Spans = []
    before = False
    for start, end, match in ranges:
        if match == before and found:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
        before = match
    return found


def _merged_with_previous(ranges: _Ranges) -> _Spans:
    found: _Spans = []
    before = False
    for start, end, match in ranges:
        if match and not before and found:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
        before = match
    return found


def _merged_with_next(ranges: _Ranges) -> _Spans:
    found: _Spans = []
    before = False
    for start, end, match in reversed(ranges):
        if match and not before and found:
            found[-1] = (start, found[-1][1])
        else:
            found.append((start, end))
        before = match
    return found[::-1]


_BEHAVIORS: Final[Mapping[str, Callable[[_Ranges], _Spans]]] = {
    "Isolated": _isolated,
    "Removed": _removed,
    "MergedWithPrevious": _merged_with_previous,
    "MergedWithNext": _merged_with_next,
    "Contiguous": _contiguous,
}


class FixedLength:
    """Pieces of so many characters."""

    splits = True
    needs_start = False

    def __init__(self, length: int) -> None:
        self._length = length

    def split(self, text: str, at_start: bool) -> list[str]:
        """The pieces."""
        return [text[start : start + self._length] for start in range(0, len(text), self._length)]

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The pieces, with places."""
        length = len(piece.text)
        return [piece.slice(start, min(start + self._length, length)) for start in range(0, length, self._length)]


class Scripts:
    """Splits where the script changes; a character of no script goes with the one before it.

    What stands before the first character that has a script is dropped, as by the library.
    """

    splits = True
    needs_start = False

    def split(self, text: str, at_start: bool) -> list[str]:
        """The pieces."""
        return [text[start:end] for start, end in self._spans(text)]

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The pieces, with places."""
        return [piece.slice(start, end) for start, end in self._spans(piece.text)]

    @staticmethod
    def _spans(text: str) -> list[tuple[int, int]]:
        bounds: list[int] = []
        last: str | None = None
        for index, script in enumerate(map(_script_of, text)):
            if script is not None and script != last:
                bounds.append(index)
                last = script
        return list(pairwise([*bounds, len(text)]))


@cache
def _script_ranges() -> tuple[list[int], list[tuple[int, str]]]:
    found = sorted((first, last, name) for name, table in SCRIPTS.items() for first, last in points.parse(table))
    return [first for first, _, _ in found], [(last, name) for _, last, name in found]


@lru_cache(1 << 16)
def _script_of(character: str) -> str | None:
    firsts, rest = _script_ranges()
    index = bisect_right(firsts, ord(character)) - 1
    if index < 0 or ord(character) > rest[index][0]:
        return None
    return rest[index][1]


# ----------------------------------------------------------------------------------------- steps that rewrite


class ToBytes:
    """Each byte becomes a character."""

    splits = False
    needs_start = False

    def split(self, text: str, at_start: bool) -> list[str]:
        """The rewritten text."""
        return [encode_bytes(text)]

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The rewritten text, with places."""
        if piece.text.isascii():
            return [piece.changed(encode_bytes(piece.text))]
        return [piece.rewritten(encode_bytes)]


class Substitute:
    """A character for spaces."""

    splits = False
    needs_start = False

    def __init__(self, replacement: str) -> None:
        self._replacement = replacement

    def split(self, text: str, at_start: bool) -> list[str]:
        """The rewritten text."""
        return [text.replace(" ", self._replacement)]

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The rewritten text, with places."""
        return [piece.changed(piece.text.replace(" ", self._replacement))]


class Begin:
    """Text begins with a character: where it does not, the character is put before.

    Args:
        character: With which it begins.
        only_at_start: Whether only the start of the original text counts.
    """

    splits = False

    def __init__(self, character: str, *, only_at_start: bool) -> None:
        self._character = character
        self.needs_start = only_at_start

    def split(self, text: str, at_start: bool) -> list[str]:
        """The rewritten text."""
        if text.startswith(self._character) or (self.needs_start and not at_start):
            return [text]
        return [self._character + text]

    def split_aligned(self, piece: Aligned) -> list[Aligned]:
        """The rewritten text, with places."""
        if piece.text.startswith(self._character) or (self.needs_start and piece.base > 0):
            return [piece]
        return [piece.prepended(self._character)]


# ---------------------------------------------------------------------------------------------- from the file


@cache
def _space() -> CodePoints:
    return points.parse(tables.WHITESPACE)


@cache
def _punctuation() -> CodePoints:
    return points.parse(tables.PUNCTUATION)


@cache
def _word() -> CodePoints:
    return points.parse(tables.WORD)


@cache
def _numeric() -> CodePoints:
    sets = (CATEGORIES["Nd"], CATEGORIES["Nl"], CATEGORIES["No"], tables.NUMERIC_EXTRA)
    return points.union(map(points.parse, sets))


def _outside(*sets: CodePoints) -> CodePoints:
    return points.complement(points.union(sets))


_SET_BEHAVIORS: Final[Mapping[str, str]] = {
    "Isolated": "{inside}|{outside}+",
    "Removed": "{outside}+",
    "MergedWithPrevious": "{outside}*{inside}|{outside}+",
    "MergedWithNext": "{inside}{outside}*|{outside}+",
    "Contiguous": "{inside}+|{outside}+",
}
"""The expression that finds the pieces when the delimiters are single characters of a set."""


def split_by_set(members: CodePoints, behavior: str) -> Step:
    """A step that splits at single characters."""
    outside = _outside(members)
    return Find(lambda write: _SET_BEHAVIORS[behavior].format(inside=write(members), outside=write(outside)))


def _bert(fields: Fields) -> Sequence[Step]:
    words, punctuation = _outside(_space(), _punctuation()), _punctuation()
    return (Find(lambda write: f"{write(words)}+|{write(punctuation)}"),)


def _whitespace(fields: Fields) -> Sequence[Step]:
    words, others = _word(), _outside(_word(), _space())
    return (Find(lambda write: f"{write(words)}+|{write(others)}+"),)


def _behavior(fields: Fields, default: str | None = None) -> str:
    behavior = fields.string("behavior") if default is None else fields.string("behavior", default)
    if behavior not in _SET_BEHAVIORS:
        place = fields.place_of("behavior")
        known = ", ".join(_SET_BEHAVIORS)
        raise TokenizerError(f"{place}: {behavior!r} is none of {known}.", place=place, value=behavior)
    return behavior


def _character(fields: Fields, name: str) -> str:
    character = fields.string(name)
    if len(character) != 1:
        raise wrong_type(fields.place_of(name), "one character", character)
    return character


def _byte_level(fields: Fields) -> Sequence[Step]:
    steps: list[Step] = []
    if fields.boolean("add_prefix_space"):
        steps.append(Begin(" ", only_at_start=False))
    if fields.boolean("use_regex", True):
        steps.append(Split(_gpt2(), "Isolated", invert=False))
    return (*steps, ToBytes())


@cache
def _gpt2() -> Pattern:
    return Pattern.parse(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def _metaspace(fields: Fields) -> Sequence[Step]:
    replacement = _character(fields, "replacement")
    scheme = fields.string("prepend_scheme", "always")
    if scheme not in ("always", "first", "never"):
        place = fields.place_of("prepend_scheme")
        raise TokenizerError(f"{place}: {scheme!r} is none of always, first, never.", place=place, value=scheme)
    if fields.has("add_prefix_space") and not fields.boolean("add_prefix_space"):
        if fields.has("prepend_scheme") and scheme != "never":
            place = fields.place_of("add_prefix_space")
            raise TokenizerError(f"{place} is false, but prepend_scheme is {scheme!r}.", place=place, value=scheme)
        scheme = "never"
    steps: list[Step] = [Substitute(replacement)]
    if scheme != "never":
        steps.append(Begin(replacement, only_at_start=scheme == "first"))
    if not fields.has("split") or fields.boolean("split"):
        steps.append(split_by_set(((ord(replacement), ord(replacement)),), "MergedWithNext"))
    return steps


def _delimiter(fields: Fields) -> Sequence[Step]:
    delimiter = ord(_character(fields, "delimiter"))
    return (split_by_set(((delimiter, delimiter),), "Removed"),)


def _digits(fields: Fields) -> Sequence[Step]:
    return (split_by_set(_numeric(), "Isolated" if fields.boolean("individual_digits") else "Contiguous"),)


def _split(fields: Fields) -> Sequence[Step]:
    pattern, _ = read_pattern(fields, "pattern")
    return (Split(pattern, _behavior(fields), invert=fields.boolean("invert")),)


def _fixed_length(fields: Fields) -> Sequence[Step]:
    length = fields.natural("length", 5)
    if length == 0:
        raise wrong_type(fields.place_of("length"), "a number above 0", length)
    return (FixedLength(length),)


def _sequence(fields: Fields) -> Sequence[Step]:
    return [step for item in fields.sequence("pretokenizers") for step in build_pre_tokenizer(*item).steps]


PRE_TOKENIZERS: Mapping[str, Callable[[Fields], Sequence[Step]]] = {
    "BertPreTokenizer": _bert,
    "ByteLevel": _byte_level,
    "CharDelimiterSplit": _delimiter,
    "Digits": _digits,
    "FixedLength": _fixed_length,
    "Metaspace": _metaspace,
    "Punctuation": lambda fields: (split_by_set(_punctuation(), _behavior(fields, "Isolated")),),
    "Sequence": _sequence,
    "Split": _split,
    "UnicodeScripts": lambda fields: (Scripts(),),
    "Whitespace": _whitespace,
    "WhitespaceSplit": lambda fields: (split_by_set(_space(), "Removed"),),
}
"""Type name in `tokenizer.json` to what makes its steps."""


def build_pre_tokenizer(value: object, place: str) -> PreTokenizer:
    """Build a pre-tokenizer from its JSON.

    Args:
        value: The parsed JSON; null leaves the text in one piece.
        place: Where it stands in the file, for messages.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    if value is None:
        return PreTokenizer(())
    fields = Fields(value, place)
    name = fields.string("type")
    builder = PRE_TOKENIZERS.get(name)
    if builder is None:
        raise unknown_component("pre-tokenizer", name, place, sorted(PRE_TOKENIZERS))
    return PreTokenizer(builder(fields))
