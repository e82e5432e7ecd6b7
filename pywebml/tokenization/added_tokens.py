"""Added tokens: found in the text as they stand, before the model sees it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.alignment import Aligned
from pywebml.tokenization.fields import Fields, check_text
from pywebml.tokenization.normalizers import Normalizer

_BEGINNING = 3
"""How many characters of a token are looked for first."""

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


class _Matcher:
    """Finds some of the tokens: the leftmost match, of these the longest, and so on behind it."""

    def __init__(self, patterns: Mapping[str, AddedToken]) -> None:
        self._tokens = patterns
        # There may be thousands of tokens: an expression finds how they begin, a table which of them it is.
        beginnings: dict[str, set[int]] = {}
        for content in patterns:
            beginnings.setdefault(content[:_BEGINNING], set()).add(len(content))
        for beginning, lengths in beginnings.items():
            lengths.update(size for size in range(1, len(beginning)) if beginning[:size] in patterns)
        self._lengths = {beginning: sorted(lengths, reverse=True) for beginning, lengths in beginnings.items()}
        longest_first = sorted(beginnings, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if patterns else None
        # The set of word characters is large: read only where a token asks for it.
        needs_words = any(token.single_word for token in patterns.values())
        self._is_word = tables.membership(tables.WORD) if needs_words else None

    def find(self, text: str) -> list[tuple[int, int, int | None]]:
        """Ranges that cover the text, none of them empty, each with the id of the token that it is."""
        found: list[tuple[int, int, int | None]] = []
        done = 0
        for start, end, token in self._matches(text):
            if token.single_word and not self._stands_alone(text, start, end):
                continue
            if token.lstrip:
                # Not into the token before, even where that one took the spaces in between.
                start = max(_left_of_spaces(text, start), done)
            if token.rstrip:
                end = _right_of_spaces(text, end)
            if done < start:
                found.append((done, start, None))
            found.append((start, end, token.id))
            done = end
        if done < len(text):
            found.append((done, len(text), None))
        return found

    def _matches(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
        pattern = self._pattern
        position = 0
        while pattern is not None:
            match = pattern.search(text, position)
            if match is None:
                return
            start = match.start()
            position = start + 1
            for length in self._lengths[match[0]]:
                token = self._tokens.get(text[start : start + length])
                if token is not None:
                    yield start, start + length, token
                    position = start + length
                    break

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

    Attributes:
        ids: Token to id.
        tokens: Id to token.
        special: The special ones.
        written: Id to what decoders get.
    """

    def __init__(self, tokens: Sequence[AddedToken], normalizer: Normalizer) -> None:
        self._normalizer = normalizer
        self.ids: Mapping[str, int] = {token.content: token.id for token in tokens}
        self.tokens: Mapping[int, AddedToken] = {token.id: token for token in tokens}
        self.special: frozenset[str] = frozenset(token.content for token in tokens if token.special)
        self.written: dict[int, str] = {token.id: token.content for token in tokens}
        raw: dict[str, AddedToken] = {}
        normalized: dict[str, AddedToken] = {}
        # Where two tokens have one form, special ones come first, then the file's order decides.
        for token in sorted(tokens, key=lambda token: not token.special):
            if token.normalized:
                form = normalizer.normalize(token.content)
                normalized.setdefault(form, token)
                # A decoder undoes what the normalizer did, so it needs the normalized form.
                self.written[token.id] = form
            else:
                raw.setdefault(token.content, token)
        # A token of which normalization leaves nothing is never found.
        normalized.pop("", None)
        self._raw = _Matcher(raw)
        self._normalized = _Matcher(normalized)

    def split(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Normalize a text and set the added tokens in it apart: pieces, each with the id of its token."""
        for start, end, token_id in self._raw.find(text):
            if token_id is not None:
                yield text[start:end], token_id
                continue
            piece = self._normalizer.normalize(text[start:end])
            for inner_start, inner_end, inner_id in self._normalized.find(piece):
                yield piece[inner_start:inner_end], inner_id

    def split_aligned(self, text: str) -> Iterator[tuple[Aligned, int | None]]:
        """The same, with the place of each character."""
        whole = Aligned(text)
        for start, end, token_id in self._raw.find(text):
            if token_id is not None:
                yield whole.slice(start, end), token_id
                continue
            piece = self._normalizer.align(whole.slice(start, end))
            for inner_start, inner_end, inner_id in self._normalized.find(piece.text):
                yield piece.slice(inner_start, inner_end), inner_id


def read_added_tokens(fields: Fields, vocab: Mapping[str, int], size: int) -> list[AddedToken]:
    """Read `added_tokens`.

    An id is not taken from the file but, as in the Rust library, from the model's vocabulary, and behind its end for
    tokens that it lacks.

    Args:
        fields: The whole `tokenizer.json`.
        vocab: The model's vocabulary.
        size: How many tokens the model counts.

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
            token_id = max([size, *(token.id + 1 for token in tokens.values())])
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
