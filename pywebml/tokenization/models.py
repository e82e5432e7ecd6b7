"""Models: a word is split into tokens of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn, Protocol

from pywebml.errors import TokenizerError
from pywebml.tokenization.bpe import read_bpe
from pywebml.tokenization.fields import Fields, unknown_component
from pywebml.tokenization.unigram import read_unigram
from pywebml.tokenization.words import Token


class Model(Protocol):
    """Splits words into tokens."""

    @property
    def vocab(self) -> Mapping[str, int]:
        """Token to id."""

    @property
    def tokens(self) -> Mapping[int, str]:
        """Id to token."""

    @property
    def size(self) -> int:
        """How many tokens the model counts: the first added token has this id."""

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word that is not empty.

        Raises:
            TokenizerError: The word is unknown, and the vocabulary has no token for that.
        """

    def describe(self, word: str) -> Sequence[Token]:
        """The same, with the tokens and their places in the word."""


@dataclass(frozen=True)
class WordPiece:
    """Longest piece first, from the left; a word with a part that is no piece is unknown as a whole.

    Attributes:
        vocab: Piece to id.
        unk_token: What stands for an unknown word.
        continuing_subword_prefix: What pieces inside a word begin with in the vocabulary.
        max_input_chars_per_word: Longer words are unknown.

    Source: Wu et al., "Google's Neural Machine Translation System" (2016); `WordPiece` of the Rust `tokenizers`.
    """

    vocab: Mapping[str, int]
    unk_token: str
    continuing_subword_prefix: str
    max_input_chars_per_word: int

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.vocab)

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id to piece."""
        return {token_id: token for token, token_id in self.vocab.items()}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.vocab), default=0)

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word."""
        pieces = self._pieces(word)
        if pieces is None:
            return (unknown_id(self.vocab, self.unk_token, word),)
        return tuple([self.vocab[piece] for piece, _ in pieces])

    def describe(self, word: str) -> Sequence[Token]:
        """The tokens of a word."""
        pieces = self._pieces(word)
        if pieces is None:
            return (Token(unknown_id(self.vocab, self.unk_token, word), self.unk_token, 0, len(word)),)
        starts = (0, *(end for _, end in pieces))
        return [
            Token(self.vocab[piece], piece, start, end) for (piece, end), start in zip(pieces, starts, strict=False)
        ]

    def _pieces(self, word: str) -> list[tuple[str, int]] | None:
        """Each piece with its end in the word; None when the word is unknown."""
        length = len(word)
        if length > self.max_input_chars_per_word:
            return None
        vocab = self.vocab
        longest = self._longest
        pieces: list[tuple[str, int]] = []
        start = 0
        prefix = ""
        while start < length:
            # No piece is longer than the longest of the vocabulary: a long word costs no more than that per token.
            for end in range(min(length, start + longest), start, -1):
                piece = prefix + word[start:end]
                if piece in vocab:
                    break
            else:
                return None
            pieces.append((piece, end))
            start = end
            prefix = self.continuing_subword_prefix
        return pieces


@dataclass(frozen=True)
class WordLevel:
    """A word is a token or unknown.

    Attributes:
        vocab: Word to id.
        unk_token: What stands for an unknown word.
    """

    vocab: Mapping[str, int]
    unk_token: str

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.vocab)

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id to word."""
        return {token_id: token for token, token_id in self.vocab.items()}

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The id of a word."""
        found = self.vocab.get(word)
        return (unknown_id(self.vocab, self.unk_token, word) if found is None else found,)

    def describe(self, word: str) -> Sequence[Token]:
        """The token of a word."""
        value = word if word in self.vocab else self.unk_token
        return (Token(self.tokenize(word)[0], value, 0, len(word)),)


def unknown_id(vocab: Mapping[str, int], unk_token: str, word: str) -> int:
    """The id of the token that stands for unknown words.

    Raises:
        TokenizerError: The vocabulary has none.
    """
    found = vocab.get(unk_token)
    if found is None:
        _missing_unknown(word, unk_token)
    return found


def _missing_unknown(word: str, unk_token: str) -> NoReturn:
    shown = word if len(word) <= 40 else f"{word[:40]}…"
    raise TokenizerError(
        f"The word {shown!r} is not in the vocabulary, and neither is the token {unk_token!r} that "
        "should stand for it. The tokenizer file does not fit its model.",
        unk_token=unk_token,
    )


def _word_piece(fields: Fields) -> Model:
    return WordPiece(
        fields.vocabulary("vocab"),
        unk_token=fields.string("unk_token"),
        continuing_subword_prefix=fields.string("continuing_subword_prefix"),
        max_input_chars_per_word=fields.natural("max_input_chars_per_word"),
    )


def _word_level(fields: Fields) -> Model:
    return WordLevel(fields.vocabulary("vocab"), unk_token=fields.string("unk_token"))


MODELS: Mapping[str, Callable[[Fields], Model]] = {
    "BPE": read_bpe,
    "Unigram": read_unigram,
    "WordLevel": _word_level,
    "WordPiece": _word_piece,
}
"""Type name in `tokenizer.json` to builder."""


def build_model(fields: Fields) -> Model:
    """Build a model from its JSON.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    name = fields.string("type") if fields.has("type") else _untagged(fields)
    builder = MODELS.get(name)
    if builder is None:
        raise unknown_component("model", name, fields.place, sorted(MODELS))
    return builder(fields)


def _untagged(fields: Fields) -> str:
    """The type of a model in the oldest files, which do not name it."""
    if fields.has("merges"):
        return "BPE"
    if fields.has("max_input_chars_per_word"):
        return "WordPiece"
    if isinstance(fields.value("vocab"), list):
        return "Unigram"
    return "WordLevel" if fields.has("unk_token") else fields.string("type")
