"""What a text, or a pair of texts, becomes; and how that is cut, joined and padded.

Each operation equals the one of the same name of `Encoding` in the Rust `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Literal, TypeAlias

from pywebml.errors import TokenizerError

Side: TypeAlias = Literal["left", "right"]
TruncationStrategy: TypeAlias = Literal["longest_first", "only_first", "only_second"]

STRATEGIES: Final[tuple[TruncationStrategy, ...]] = ("longest_first", "only_first", "only_second")


@dataclass(slots=True)
class Encoding:
    """One text, or pair of texts, as tokens. All lists have the same length.

    Attributes:
        ids: Of the tokens.
        type_ids: 0 and 1 for the first and second text, as the model's template says.
        tokens: The tokens themselves.
        offsets: Start and end of each token in its text, in characters (code points); (0, 0) for tokens that are in
            no text.
        word_ids: Number of the word, in its text, that a token belongs to; None for tokens that are in no text.
        attention_mask: 1; padding has 0.
        special_tokens_mask: 1 for tokens that were put around the texts; 0 for all that is in the texts, even where
            a text has a special token.
        overflowing: What was cut off, in pieces of the same kind.
        sequence_ranges: Number of a text to the range of its tokens.
    """

    ids: list[int] = field(default_factory=list)
    type_ids: list[int] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    word_ids: list[int | None] = field(default_factory=list)
    attention_mask: list[int] = field(default_factory=list)
    special_tokens_mask: list[int] = field(default_factory=list)
    overflowing: list[Encoding] = field(default_factory=list)
    sequence_ranges: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sequence_ids(self) -> list[int | None]:
        """For each token the number of its text, 0 or 1; None for tokens that are in no text."""
        found: list[int | None] = [None] * len(self)
        for sequence in range(len(self.sequence_ranges) or 1):
            start, end = self._range(sequence)
            found[start:end] = [sequence] * (end - start)
        return found

    def word_to_tokens(self, word: int, sequence: int = 0) -> tuple[int, int] | None:
        """The range of a word's tokens; None when there is no such word."""
        start, end = self._range(sequence)
        found = [index for index in range(start, end) if self.word_ids[index] == word]
        return (found[0], found[-1] + 1) if found else None

    def word_to_chars(self, word: int, sequence: int = 0) -> tuple[int, int] | None:
        """The range of a word's characters; None when there is no such word."""
        found = self.word_to_tokens(word, sequence)
        return None if found is None else (self.offsets[found[0]][0], self.offsets[found[1] - 1][1])

    def char_to_token(self, position: int, sequence: int = 0) -> int | None:
        """The token that has a character; None when there is none."""
        for index in range(*self._range(sequence)):
            start, end = self.offsets[index]
            if start <= position < end:
                return index
        return None

    def char_to_word(self, position: int, sequence: int = 0) -> int | None:
        """The word that has a character; None when there is none."""
        token = self.char_to_token(position, sequence)
        return None if token is None else self.word_ids[token]

    def token_to_chars(self, token: int) -> tuple[int, int] | None:
        """The range of a token's characters; None for a token that is in no text."""
        return self.offsets[token] if self.sequence_ids[token] is not None else None

    def token_to_word(self, token: int) -> int | None:
        """The word of a token; None for a token that is in no text."""
        return self.word_ids[token] if self.sequence_ids[token] is not None else None

    def _range(self, sequence: int) -> tuple[int, int]:
        return self.sequence_ranges.get(sequence, (0, len(self)))

    # ------------------------------------------------------------------------------------------ for the package

    def mark_sequence(self, sequence: int) -> None:
        """Say of which text all tokens are."""
        self.sequence_ranges[sequence] = (0, len(self))

    def part(self, start: int, end: int) -> Encoding:
        """A range of the tokens; of which text they are is lost."""
        return Encoding(
            self.ids[start:end],
            self.type_ids[start:end],
            self.tokens[start:end],
            self.offsets[start:end],
            self.word_ids[start:end],
            self.attention_mask[start:end],
            self.special_tokens_mask[start:end],
        )

    def copy(self) -> Encoding:
        """Another one that is equal."""
        return Encoding(
            self.ids[:],
            self.type_ids[:],
            self.tokens[:],
            self.offsets[:],
            self.word_ids[:],
            self.attention_mask[:],
            self.special_tokens_mask[:],
            [other.copy() for other in self.overflowing],
            dict(self.sequence_ranges),
        )

    def extend(self, other: Encoding) -> None:
        """Put another one behind; what overflowed of both is combined."""
        overflowing: list[Encoding] = []
        if self.overflowing or other.overflowing:
            for mine in self.overflowing:
                overflowing += [_joined(mine, theirs) for theirs in (other, *other.overflowing)]
            overflowing += [_joined(self, theirs) for theirs in other.overflowing]
        before = len(self)
        for sequence, (start, end) in other.sequence_ranges.items():
            self.sequence_ranges[sequence] = (before + start, before + end)
        self.ids += other.ids
        self.type_ids += other.type_ids
        self.tokens += other.tokens
        self.offsets += other.offsets
        self.word_ids += other.word_ids
        self.attention_mask += other.attention_mask
        self.special_tokens_mask += other.special_tokens_mask
        self.overflowing = overflowing


def special(ids: Sequence[int], tokens: Sequence[str], type_id: int) -> Encoding:
    """Tokens that are in no text."""
    count = len(ids)
    return Encoding(
        list(ids), [type_id] * count, list(tokens), [(0, 0)] * count, [None] * count, [1] * count, [1] * count
    )


def _joined(left: Encoding, right: Encoding) -> Encoding:
    joined = left.copy()
    joined.extend(right)
    return joined


def merged(encodings: Iterable[Encoding]) -> Encoding:
    """All, one behind the other."""
    result = Encoding()
    for encoding in encodings:
        result.extend(encoding)
    return result


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of each of two texts stay: the longer one is cut first, then both to halves."""
    if sum(lengths) <= room:
        return list(lengths)
    shorter = min(lengths)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = room - shorter
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]


def kept_lengths(lengths: Sequence[int], room: int, strategy: TruncationStrategy) -> list[int]:
    """How many tokens of each text stay.

    Args:
        lengths: Tokens of one or two texts.
        room: For all of them together.
        strategy: Which of them is cut.

    Raises:
        TokenizerError: The text that is to be cut is too short for that, or is not there.
    """
    surplus = sum(lengths) - room
    if surplus <= 0:
        return list(lengths)
    if room == 0:
        return [0] * len(lengths)
    if strategy == "longest_first":
        return shares(lengths, room) if len(lengths) == 2 else [room]
    target = 0 if strategy == "only_first" else 1
    if target >= len(lengths):
        raise TokenizerError(
            "truncation='only_second' needs a second text. Give one, or use 'longest_first'.", strategy=strategy
        )
    if lengths[target] <= surplus:
        raise TokenizerError(
            f"truncation={strategy!r} cannot cut {surplus} tokens off a text of {lengths[target]}. Use "
            "'longest_first', or a larger max_length.",
            strategy=strategy,
            surplus=surplus,
            length=lengths[target],
        )
    kept = list(lengths)
    kept[target] -= surplus
    return kept


def truncated(encoding: Encoding, most: int, stride: int, side: Side) -> Encoding:
    """At most so many tokens; the rest overflows in pieces that overlap by `stride`.

    Raises:
        TokenizerError: The stride leaves no room for anything new.
    """
    length = len(encoding)
    if most >= length:
        return encoding
    if most == 0:
        return Encoding(overflowing=[encoding])
    if stride >= most:
        raise TokenizerError(
            f"stride={stride} must be smaller than the {most} tokens that max_length leaves for the text.",
            stride=stride,
            room=most,
        )
    ranges: list[tuple[int, int]] = []
    step = most - stride
    if side == "right":
        for start in range(0, length, step):
            end = min(start + most, length)
            ranges.append((start, end))
            if end == length:
                break
    else:
        for end in range(length, 0, -step):
            start = max(end - most, 0)
            ranges.append((start, end))
            if start == 0:
                break
    result = encoding.part(*ranges[0])
    result.overflowing = [encoding.part(start, end) for start, end in ranges[1:]]
    return result


def pad(encoding: Encoding, length: int, token: str, token_id: int, type_id: int, side: Side) -> None:
    """Make it so long, and all that overflowed."""
    for other in encoding.overflowing:
        pad(other, length, token, token_id, type_id, side)
    count = length - len(encoding)
    if count <= 0:
        return
    padding = Encoding(
        ids=[token_id] * count,
        type_ids=[type_id] * count,
        tokens=[token] * count,
        offsets=[(0, 0)] * count,
        word_ids=[None] * count,
        attention_mask=[0] * count,
        special_tokens_mask=[1] * count,
    )
    content = encoding.part(0, len(encoding))
    whole = merged((content, padding) if side == "right" else (padding, content))
    moved = 0 if side == "right" else count
    encoding.ids = whole.ids
    encoding.type_ids = whole.type_ids
    encoding.tokens = whole.tokens
    encoding.offsets = whole.offsets
    encoding.word_ids = whole.word_ids
    encoding.attention_mask = whole.attention_mask
    encoding.special_tokens_mask = whole.special_tokens_mask
    ranges = encoding.sequence_ranges.items()
    encoding.sequence_ranges = {sequence: (start + moved, end + moved) for sequence, (start, end) in ranges}


def flattened(encodings: Iterable[Encoding]) -> tuple[list[Encoding], list[int]]:
    """Each encoding with all that overflowed of it, and for each of these the number of the one it is of."""
    rows = [[encoding, *encoding.overflowing] for encoding in encodings]
    return list(chain.from_iterable(rows)), [index for index, row in enumerate(rows) for _ in row]
