"""Pre-tokenizers: the normalized text is split into words, which the model then splits into tokens.

Each equals the component of the same name in the Rust `tokenizers` library. All of them are one regular expression,
made of the library's own character sets, that finds the words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pywebml.errors import TokenizerError
from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.fields import Fields, unknown_component


class PreTokenizer(Protocol):
    """Splits text into words."""

    def split(self, text: str) -> list[str]:
        """The words, none of them empty."""


class PatternSplit:
    """The words are the matches of a regular expression (which never matches the empty string)."""

    def __init__(self, pattern: str) -> None:
        self.split: Callable[[str], list[str]] = re.compile(pattern, re.DOTALL).findall


class PreTokenizerSequence:
    """Several pre-tokenizers: each splits the words of the one before."""

    def __init__(self, steps: Sequence[PreTokenizer]) -> None:
        self._steps = tuple(steps)

    def split(self, text: str) -> list[str]:
        """The words."""
        words = [text] if text else []
        for step in self._steps:
            words = [part for word in words for part in step.split(word)]
        return words


_SPACE = tables.character_class(tables.WHITESPACE)
_PUNCTUATION = tables.character_class(tables.PUNCTUATION)

_PUNCTUATION_BEHAVIORS: Mapping[str, str] = {
    "Isolated": f"[{_PUNCTUATION}]|[^{_PUNCTUATION}]+",
    "Removed": f"[^{_PUNCTUATION}]+",
    "MergedWithPrevious": f"[^{_PUNCTUATION}]*[{_PUNCTUATION}]|[^{_PUNCTUATION}]+",
    "MergedWithNext": f"[{_PUNCTUATION}][^{_PUNCTUATION}]*|[^{_PUNCTUATION}]+",
    "Contiguous": f"[{_PUNCTUATION}]+|[^{_PUNCTUATION}]+",
}


def _bert(fields: Fields) -> PreTokenizer:
    return PatternSplit(f"[^{_SPACE}{_PUNCTUATION}]+|[{_PUNCTUATION}]")


def _whitespace(fields: Fields) -> PreTokenizer:
    word = tables.character_class(tables.WORD)
    return PatternSplit(f"[{word}]+|[^{word}{_SPACE}]+")


def _whitespace_split(fields: Fields) -> PreTokenizer:
    return PatternSplit(f"[^{_SPACE}]+")


def _punctuation(fields: Fields) -> PreTokenizer:
    behavior = fields.string("behavior", "Isolated")
    pattern = _PUNCTUATION_BEHAVIORS.get(behavior)
    if pattern is None:
        place = fields.place_of("behavior")
        known = ", ".join(_PUNCTUATION_BEHAVIORS)
        raise TokenizerError(f"{place}: {behavior!r} is none of {known}.", place=place, value=behavior)
    return PatternSplit(pattern)


def _sequence(fields: Fields) -> PreTokenizer:
    return PreTokenizerSequence([build_pre_tokenizer(*item) for item in fields.sequence("pretokenizers")])


PRE_TOKENIZERS: Mapping[str, Callable[[Fields], PreTokenizer]] = {
    "BertPreTokenizer": _bert,
    "Punctuation": _punctuation,
    "Sequence": _sequence,
    "Whitespace": _whitespace,
    "WhitespaceSplit": _whitespace_split,
}
"""Type name in `tokenizer.json` to builder."""


def build_pre_tokenizer(value: object, place: str) -> PreTokenizer:
    """Build a pre-tokenizer from its JSON.

    Args:
        value: The parsed JSON; null leaves the text in one piece.
        place: Where it stands in the file, for messages.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    if value is None:
        return PreTokenizerSequence(())
    fields = Fields(value, place)
    name = fields.string("type")
    builder = PRE_TOKENIZERS.get(name)
    if builder is None:
        raise unknown_component("pre-tokenizer", name, place, sorted(PRE_TOKENIZERS))
    return builder(fields)
