"""Models: a word is split into tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, unknown_component


class Model(Protocol):
    """Splits words into tokens."""

    vocab: Mapping[str, int]
    """Token to id."""

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word that is not empty."""


class WordPiece:
    """Longest piece first, from the left; a word with a part that is no piece is unknown as a whole.

    Args:
        vocab: Piece to id.
        unk_token: What stands for an unknown word.
        continuing_subword_prefix: What pieces inside a word begin with in the vocabulary.
        max_input_chars_per_word: Longer words are unknown.

    Source: Wu et al., "Google's Neural Machine Translation System" (2016); `WordPiece` of the Rust `tokenizers`.
    """

    def __init__(
        self,
        vocab: Mapping[str, int],
        *,
        unk_token: str,
        continuing_subword_prefix: str,
        max_input_chars_per_word: int,
    ) -> None:
        self.vocab = vocab
        self._unk_token = unk_token
        self._prefix = continuing_subword_prefix
        self._max_chars = max_input_chars_per_word
        self._longest = max(map(len, vocab), default=0)

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word.

        Raises:
            TokenizerError: The word is unknown, and the vocabulary has no token for that.
        """
        length = len(word)
        if length > self._max_chars:
            return self._unknown(word)
        ids: list[int] = []
        start = 0
        prefix = ""
        while start < length:
            # No piece is longer than the longest of the vocabulary: a long word costs no more than that per token.
            for end in range(min(length, start + self._longest), start, -1):
                found = self.vocab.get(prefix + word[start:end])
                if found is not None:
                    break
            else:
                return self._unknown(word)
            ids.append(found)
            start = end
            prefix = self._prefix
        return tuple(ids)

    def _unknown(self, word: str) -> tuple[int, ...]:
        found = self.vocab.get(self._unk_token)
        if found is None:
            shown = word if len(word) <= 40 else f"{word[:40]}…"
            raise TokenizerError(
                f"The word {shown!r} is not in the vocabulary, and neither is the token {self._unk_token!r} that "
                "should stand for it. The tokenizer file does not fit its model.",
                unk_token=self._unk_token,
            )
        return (found,)


def _word_piece(fields: Fields) -> Model:
    return WordPiece(
        fields.vocabulary("vocab"),
        unk_token=fields.string("unk_token"),
        continuing_subword_prefix=fields.string("continuing_subword_prefix"),
        max_input_chars_per_word=fields.natural("max_input_chars_per_word"),
    )


MODELS: Mapping[str, Callable[[Fields], Model]] = {
    "WordPiece": _word_piece,
}
"""Type name in `tokenizer.json` to builder."""


def build_model(fields: Fields) -> Model:
    """Build a model from its JSON.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    # The oldest files do not name the type; only a WordPiece has this field.
    name = "WordPiece" if not fields.has("type") and fields.has("max_input_chars_per_word") else fields.string("type")
    builder = MODELS.get(name)
    if builder is None:
        raise unknown_component("model", name, fields.place, sorted(MODELS))
    return builder(fields)
