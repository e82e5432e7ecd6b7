"""Added tokens: found in the text as they stand, before the model sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.fields import Fields, check_text
from pywebml.tokenization.normalizers import Normalizer

_is_space = tables.membership(tables.WHITESPACE)


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text itself.

    Attributes:
        content: The text to find.
        id: Of the token.
        single_word: It is only found where no word character touches it.
        lstrip: White space on its left belongs to it.
        rstrip: White space on its right belongs to it.
        normalized: It is looked for in the normalized text, in its own normalized form.
        special: It is not part of the text proper; decoders can leave it out.
    """

    content: str
    id: int
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


@dataclass(frozen=True, slots=True)
class Split:
    """A piece of text: plain when `id` is None, else an added token."""

    text: str
    id: int | None


class _Matcher:
    """Finds some of the tokens: the leftmost match, of these the longest, and so on behind it."""

    def __init__(self, patterns: Mapping[str, AddedToken]) -> None:
        self._tokens = patterns
        longest_first = sorted(patterns, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if patterns else None
        # The set of word characters is large: read only where a token asks for it.
        needs_words = any(token.single_word for token in patterns.values())
        self._is_word = tables.membership(tables.WORD) if needs_words else None

    def split(self, text: str) -> Iterator[Split]:
        """The pieces of a text, none of them empty."""
        done = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            start, end = match.span()
            token = self._tokens[match[0]]
            if token.single_word and not self._stands_alone(text, start, end):
                continue
            if token.lstrip:
                # Not into the token before, even where that one took the spaces in between.
                start = max(_left_of_spaces(text, start), done)
            if token.rstrip:
                end = _right_of_spaces(text, end)
            if done < start:
                yield Split(text[done:start], None)
            yield Split(text[start:end], token.id)
            done = end
        if done < len(text):
            yield Split(text[done:], None)

    def _stands_alone(self, text: str, start: int, end: int) -> bool:
        neighbours = text[max(start - 1, 0) : start] + text[end : end + 1]
        return self._is_word is None or not any(self._is_word(ord(character)) for character in neighbours)


def _left_of_spaces(text: str, position: int) -> int:
    while position > 0 and _is_space(ord(text[position - 1])):
        position -= 1
    return position


def _right_of_spaces(text: str, position: int) -> int:
    while position < len(text) and _is_space(ord(text[position])):
        position += 1
    return position


class AddedVocabulary:
    """The added tokens of a tokenizer.

    Args:
        tokens: In the file's order.
        normalizer: The tokenizer's own.
    """

    def __init__(self, tokens: Sequence[AddedToken], normalizer: Normalizer) -> None:
        self._normalizer = normalizer
        self.ids: Mapping[str, int] = {token.content: token.id for token in tokens}
        self.tokens: Mapping[int, AddedToken] = {token.id: token for token in tokens}
        raw: dict[str, AddedToken] = {}
        normalized: dict[str, AddedToken] = {}
        # Where two tokens have one form, special ones come first, then the file's order decides.
        for token in sorted(tokens, key=lambda token: not token.special):
            if token.normalized:
                normalized.setdefault(normalizer.normalize(token.content), token)
            else:
                raw.setdefault(token.content, token)
        # A token of which normalization leaves nothing is never found.
        normalized.pop("", None)
        self._raw = _Matcher(raw)
        self._normalized = _Matcher(normalized)

    def split(self, text: str) -> Iterator[Split]:
        """Normalize a text and set the added tokens in it apart."""
        for piece in self._raw.split(text):
            if piece.id is None:
                yield from self._normalized.split(self._normalizer.normalize(piece.text))
            else:
                yield piece


def read_added_tokens(fields: Fields, vocab: Mapping[str, int]) -> list[AddedToken]:
    """Read `added_tokens`.

    An id is not taken from the file but, as in the Rust library, from the model's vocabulary, and behind its end for
    tokens that it lacks.

    Args:
        fields: The whole `tokenizer.json`.
        vocab: The model's vocabulary.

    Raises:
        TokenizerError: Something is missing or malformed.
    """
    if not fields.has("added_tokens"):
        return []
    tokens: dict[str, AddedToken] = {}
    for value, place in fields.sequence("added_tokens"):
        item = Fields(value, place)
        item.natural("id")
        content = item.string("content")
        if not content:
            continue
        check_text(content, item.place_of("content"))
        token_id = tokens[content].id if content in tokens else vocab.get(content)
        if token_id is None:
            token_id = max([len(vocab), *(token.id + 1 for token in tokens.values())])
        tokens[content] = AddedToken(
            content=content,
            id=token_id,
            single_word=item.boolean("single_word"),
            lstrip=item.boolean("lstrip"),
            rstrip=item.boolean("rstrip"),
            normalized=item.boolean("normalized"),
            special=item.boolean("special"),
        )
    return list(tokens.values())
