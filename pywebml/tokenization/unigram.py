"""Unigram: of all ways to split a word the most likely one.

Source: Kudo, "Subword Regularization" (2018); `Unigram` of the Rust `tokenizers`, without its sampling, which is for
training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Final, cast

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, check_text, wrong_type
from pywebml.tokenization.words import Token, tokens_of_bytes

_UNKNOWN_PENALTY: Final = 10.0


@dataclass(frozen=True)
class Unigram:
    """The model.

    Attributes:
        pieces: The tokens; a token's place is its id.
        scores: Logarithm of the probability of each.
        unk_id: What stands for unknown characters; None: there is nothing.
        byte_fallback: What is unknown is tokens such as `<0xE2>` for its bytes.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    unk_id: int | None
    byte_fallback: bool = False

    @cached_property
    def vocab(self) -> Mapping[str, int]:
        """Token to id; of equal tokens the last counts."""
        return {token: token_id for token_id, token in enumerate(self.pieces)}

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.pieces)

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id to token."""
        return dict(enumerate(self.pieces))

    @cached_property
    def _longest(self) -> Mapping[str, int]:
        """First character to the length of the longest token that begins with it."""
        found: dict[str, int] = {}
        for token in sorted(self.vocab, key=len):
            found[token[:1]] = len(token)
        return found

    @cached_property
    def _unknown_score(self) -> float:
        return min(self.scores, default=float("inf")) - _UNKNOWN_PENALTY

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word."""
        return tuple([token_id for token_id, *_ in self._parts(word)])

    def describe(self, word: str) -> Sequence[Token]:
        """The tokens of a word."""
        return tokens_of_bytes(word, self._parts(word))

    def _parts(self, word: str) -> list[tuple[int, str, int, int]]:
        """Id, token and its bytes in the word."""
        parts: list[tuple[int, str, int, int]] = []
        start = 0
        for piece in self._split(word):
            end = start + len(piece.encode())
            found = self.vocab.get(piece)
            if found is not None:
                parts.append((found, piece, start, end))
            else:
                names = [f"<0x{byte:02X}>" for byte in piece.encode()]
                if self.byte_fallback and all(name in self.vocab for name in names):
                    parts += [(self.vocab[name], name, start, end) for name in names]
                else:
                    parts.append((self._unknown(word), piece, start, end))
            start = end
        return parts

    def _unknown(self, word: str) -> int:
        if self.unk_id is None:
            shown = word if len(word) <= 40 else f"{word[:40]}…"
            raise TokenizerError(
                f"The text {shown!r} has a character that is not in the vocabulary, and the vocabulary has no token "
                "that could stand for it. The tokenizer file does not fit its model."
            )
        return self.unk_id

    def _split(self, word: str) -> list[str]:
        """The best way to split: for each place the best path that ends there, from left to right."""
        vocab, scores, longest = self.vocab, self.scores, self._longest
        size = len(word)
        best = [0.0] * (size + 1)
        origin = [-1] * (size + 1)
        unknown = [False] * (size + 1)
        for start in range(size):
            here = best[start]
            for end in range(start + 1, min(size, start + longest.get(word[start], 0)) + 1):
                found = vocab.get(word[start:end])
                if found is None:
                    continue
                score = scores[found] + here
                if origin[end] < 0 or score > best[end]:
                    best[end], origin[end], unknown[end] = score, start, found == self.unk_id
            if word[start] not in vocab:
                end = start + 1
                score = self._unknown_score + here
                if origin[end] < 0 or score > best[end]:
                    self._unknown(word)
                    best[end], origin[end], unknown[end] = score, start, True
        pieces: list[str] = []
        end = size
        fused_end = -1
        while end > 0:
            start = origin[end]
            if unknown[end]:
                # Unknown characters side by side are one.
                if fused_end < 0:
                    fused_end = end
            else:
                if fused_end >= 0:
                    pieces.append(word[end:fused_end])
                    fused_end = -1
                pieces.append(word[start:end])
            end = start
        if fused_end >= 0:
            pieces.append(word[:fused_end])
        return pieces[::-1]


def read_unigram(fields: Fields) -> Unigram:
    """Read the model from its JSON.

    Raises:
        TokenizerError: It is malformed.
    """
    values = fields.values("vocab")
    place = fields.place_of("vocab")
    if not values:
        raise TokenizerError(f"{place} is empty. The file is damaged.", place=place)
    if set(map(type, values)) != {list} or set(map(len, cast(list[list[object]], values))) != {2}:
        raise wrong_type(place, "a list of tokens, each with its score", values)
    pieces, scores = zip(*cast(list[list[object]], values), strict=True)
    if set(map(type, pieces)) != {str}:
        raise wrong_type(place, "a list of tokens, each with its score", values)
    try:
        numbers = list(map(float, cast(tuple[float, ...], scores))) if not set(map(type, scores)) - {int, float} else []
    except OverflowError:
        numbers = []
    if len(numbers) != len(pieces) or not all(map(isfinite, numbers)):
        raise wrong_type(place, "a list of tokens, each with a number as its score", values)
    check_text("\n".join(cast(tuple[str, ...], pieces)), place)
    return checked_unigram(
        cast(tuple[str, ...], pieces),
        numbers,
        unk_id=fields.natural("unk_id") if fields.has("unk_id") else None,
        byte_fallback=fields.has("byte_fallback") and fields.boolean("byte_fallback"),
        place=place,
    )


def checked_unigram(
    pieces: Sequence[str], scores: Sequence[float], *, unk_id: int | None, byte_fallback: bool, place: str
) -> Unigram:
    """The model, when its unknown token is in its vocabulary.

    Raises:
        TokenizerError: It is not.
    """
    if unk_id is not None and unk_id >= len(pieces):
        raise TokenizerError(
            f"{place} has {len(pieces)} tokens, but the unknown token is number {unk_id}. The file is damaged.",
            place=place,
            unk_id=unk_id,
        )
    return Unigram(pieces, scores, unk_id, byte_fallback)
