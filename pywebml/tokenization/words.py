"""Tokens of a word, as models describe them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Token(NamedTuple):
    """A token of a word.

    Attributes:
        id: Of the token.
        value: The token itself.
        start: Where it begins in the word, in characters.
        end: Behind its last character.
        misplaced: The place is in bytes and reaches beyond the word: the model counted more bytes than it has.
    """

    id: int
    value: str
    start: int
    end: int
    misplaced: bool = False


def tokens_of_bytes(word: str, parts: Iterable[tuple[int, str, int, int]]) -> list[Token]:
    """Tokens whose places are given in bytes of UTF-8: id, value, start, end.

    A token that ends inside a character has the whole character.
    """
    if word.isascii():
        size = len(word)
        return [Token(token_id, value, start, end, end > size) for token_id, value, start, end in parts]
    characters = [index for index, character in enumerate(word) for _ in character.encode()]
    size = len(characters)
    return [
        Token(token_id, value, start, end, True)
        if end > size
        else Token(token_id, value, characters[start], characters[end - 1] + 1)
        for token_id, value, start, end in parts
    ]
