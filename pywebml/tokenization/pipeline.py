"""From a text to its tokens: normalizer, added tokens, pre-tokenizer and model, one behind the other.

There are two ways with one result. `ids` works on plain text and leaves as much as possible to C: one expression
splits the whole text, and what each word becomes is looked up. `encode` keeps the place of every character on the way
and gives all that is known of each token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Final

from pywebml.tokenization.added_tokens import AddedVocabulary
from pywebml.tokenization.alignment import Aligned
from pywebml.tokenization.encoding import Encoding
from pywebml.tokenization.models import Model
from pywebml.tokenization.normalizers import Normalizer
from pywebml.tokenization.post_processors import PostProcessor
from pywebml.tokenization.pre_tokenizers import PreTokenizer, Step, split_by
from pywebml.tokenization.words import Token

_CACHED_WORDS: Final = 1 << 16
_CACHED_WORD_LENGTH: Final = 128


class _WordIds(dict[str, tuple[int, ...]]):
    """The ids of words, worked out on first sight."""

    def __init__(self, steps: Sequence[Step], model: Model) -> None:
        super().__init__()
        self._steps = steps
        self._tokenize = model.tokenize

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self.find(word, at_start=False)
        if len(word) <= _CACHED_WORD_LENGTH:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids

    def find(self, word: str, *, at_start: bool) -> tuple[int, ...]:
        """The ids of a word."""
        return tuple(chain.from_iterable(map(self._tokenize, split_by(self._steps, word, at_start=at_start))))


class Pipeline:
    """The components of a tokenizer that encode.

    Args:
        added: Finds added tokens, and normalizes what lies between them.
        normalizer: The same that `added` uses; None when there is none.
        pre_tokenizer: Splits text into words.
        model: Splits words into tokens.
        post_processor: Puts special tokens around texts.
    """

    def __init__(
        self,
        added: AddedVocabulary,
        normalizer: Normalizer | None,
        pre_tokenizer: PreTokenizer,
        model: Model,
        post_processor: PostProcessor,
    ) -> None:
        self.added = added
        self.model = model
        self.post_processor = post_processor
        self._pre_tokenizer = pre_tokenizer
        # Only with a normalizer may the first character of a piece at the start not be the first of the text.
        self._start_is_moved = pre_tokenizer.needs_start and normalizer is not None
        steps = pre_tokenizer.steps
        first_split = next((index for index, step in enumerate(steps) if step.splits), len(steps))
        self._rewriting = steps[:first_split]
        self._splitting = steps[first_split] if first_split < len(steps) else None
        rest = steps[first_split + 1 :]
        self._rest_needs_start = any(step.needs_start for step in rest)
        self._word_ids = _WordIds(rest, model)
        self._described: dict[str, Sequence[Token]] = {}

    # ------------------------------------------------------------------------------------------------------ ids

    def ids(self, text: str) -> list[int]:
        """The ids of a text's tokens."""
        found: list[int] = []
        if self._start_is_moved:
            for piece, token_id in self.added.split_aligned(text):
                found += self._ids_of_moved(piece) if token_id is None else (token_id,)
            return found
        at_start = True
        for part, token_id in self.added.split(text):
            found += self._ids_of(part, at_start) if token_id is None else (token_id,)
            at_start = False
        return found

    def _ids_of(self, text: str, at_start: bool) -> list[int]:
        for step in self._rewriting:
            text = step.split(text, at_start)[0]
        words = [text] if self._splitting is None else self._splitting.split(text, at_start)
        if self._rest_needs_start and at_start and words:
            first = self._word_ids.find(words[0], at_start=True)
            return [*first, *chain.from_iterable(map(self._word_ids.__getitem__, words[1:]))]
        return list(chain.from_iterable(map(self._word_ids.__getitem__, words)))

    def _ids_of_moved(self, piece: Aligned) -> list[int]:
        if not self._rest_needs_start or piece.base > 0:
            return self._ids_of(piece.text, piece.base == 0)
        # Several words can be at the start: those that the normalizer made of the text's first character.
        words = self._pre_tokenizer.split_aligned(piece)
        return [token_id for word in words for token_id in self.model.tokenize(word.text)]

    # ----------------------------------------------------------------------------------------------- encodings

    def encode(self, text: str, type_id: int, word_id: int | None = None) -> Encoding:
        """All that is known of a text's tokens.

        Args:
            text: A text.
            type_id: Of all tokens.
            word_id: Of all tokens; None: words are counted.
        """
        ids: list[int] = []
        tokens: list[str] = []
        offsets: list[tuple[int, int]] = []
        words: list[int | None] = []
        number = 0
        for piece, token_id in self.added.split_aligned(text):
            if token_id is not None:
                ids.append(token_id)
                tokens.append(piece.text)
                offsets.append(piece.span(0, len(piece.text)))
                words.append(number)
                number += 1
                continue
            for word in self._pre_tokenizer.split_aligned(piece):
                described = self._describe(word.text)
                ids += [token.id for token in described]
                tokens += [token.value for token in described]
                offsets += _offsets(text, word, described)
                words += [number] * len(described)
                number += 1
        if word_id is not None:
            words = [word_id] * len(ids)
        count = len(ids)
        return Encoding(ids, [type_id] * count, tokens, offsets, words, [1] * count, [0] * count)

    def _describe(self, word: str) -> Sequence[Token]:
        described = self._described.get(word)
        if described is None:
            described = self.model.describe(word)
            if len(word) <= _CACHED_WORD_LENGTH:
                if len(self._described) >= _CACHED_WORDS:
                    self._described.clear()
                self._described[word] = described
        return described


def _offsets(text: str, word: Aligned, described: Sequence[Token]) -> list[tuple[int, int]]:
    if word.starts is None:
        base = word.base
        if not any(token.misplaced for token in described):
            return [(base + token.start, base + token.end) for token in described]
    return [
        _misplaced(text, token.start, token.end) if token.misplaced else word.span(token.start, token.end)
        for token in described
    ]


@lru_cache(1)
def _byte_ends(text: str) -> list[int]:
    """For each character the number of bytes up to its end."""
    return list(accumulate(len(character.encode()) for character in text))


def _misplaced(text: str, start: int, end: int) -> tuple[int, int]:
    """The place of a token that reaches beyond its word: the library takes its bytes for bytes of the whole text."""
    ends = _byte_ends(text)
    size = ends[-1]
    if start >= size:
        return start, end
    first = bisect_right(ends, start)
    if end < size:
        return first, bisect_right(ends, end)
    last = bisect_right(ends, end - 1) if end - 1 < size else first + 1
    return first, last + 1
