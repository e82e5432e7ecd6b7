"""Text on its way from the original to tokens, each character with its place in the original.

This is `NormalizedString` of the Rust `tokenizers` library, counted in code points instead of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Aligned:
    """A piece of text and where its characters come from.

    Attributes:
        text: As it stands now.
        base: Where the piece begins in the original text.
        starts: For each character the first original character that it stands for; None while nothing was moved,
            so that character `i` stands for the original one at `base + i`.
        ends: The same for the position behind the last one.
    """

    text: str
    base: int = 0
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def positions(self) -> tuple[Sequence[int], Sequence[int]]:
        """`starts` and `ends`, worked out where nothing was moved."""
        if self.starts is None or self.ends is None:
            base, length = self.base, len(self.text)
            return range(base, base + length), range(base + 1, base + length + 1)
        return self.starts, self.ends

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The original characters that a range of the text (not empty) stands for."""
        if self.starts is None or self.ends is None:
            return self.base + start, self.base + end
        return self.starts[start], self.ends[end - 1]

    def slice(self, start: int, end: int) -> Aligned:
        """A range of the text; an empty one has no place."""
        if self.starts is None or self.ends is None:
            return Aligned(self.text[start:end], self.base + start)
        starts = self.starts[start:end]
        return Aligned(self.text[start:end], starts[0] if starts else self.base, starts, self.ends[start:end])

    def changed(self, text: str) -> Aligned:
        """The same places with other characters, one for one."""
        return Aligned(text, self.base, self.starts, self.ends)

    def picked(self, text: str, sources: Sequence[int]) -> Aligned:
        """New text; `sources` gives for each character the index of the one whose place it takes."""
        starts, ends = self.positions()
        return Aligned(text, self.base, [starts[index] for index in sources], [ends[index] for index in sources])

    def rewritten(self, rewrite: Callable[[str], str]) -> Aligned:
        """Each character by itself is rewritten to any number of others, which take its place."""
        pieces = list(map(rewrite, self.text))
        text = "".join(pieces)
        if len(text) == len(pieces) and all(pieces):
            return self.changed(text)
        return self.picked(text, [index for index, piece in enumerate(pieces) for _ in piece])

    def prepended(self, prefix: str) -> Aligned:
        """The text, which is not empty, with a prefix that takes the place of its first character."""
        return self.picked(prefix + self.text, [0] * len(prefix) + list(range(len(self.text))))

    def transformed(self, changes: Iterable[tuple[str, int]]) -> Aligned:
        """The new characters one by one, each with what it does.

        Args:
            changes: A character and 0 when it replaces the next old one, -n when it replaces that and n more behind
                it are dropped, 1 when it is new and shares the place of the character before.
        """
        text: list[str] = []
        sources: list[int] = []
        index = 0
        last = len(self.text) - 1
        for character, change in changes:
            text.append(character)
            if change > 0:
                sources.append(max(index - 1, 0))
            else:
                sources.append(min(index, last))
                index += 1 - change
        return self.picked("".join(text), sources)

    def replaced(self, spans: Iterable[tuple[int, int]], content: str) -> Aligned:
        """Ranges of the text replaced; what comes in takes the place of the last character that goes.

        Where nothing goes it takes the place of the character before, and at the very start a place without width.
        """
        starts, ends = map(list, self.positions())
        text: list[str] = []
        new_starts: list[int] = []
        new_ends: list[int] = []
        done = 0
        for start, end in spans:
            text += (self.text[done:start], content)
            new_starts += starts[done:start]
            new_ends += ends[done:start]
            place = (starts[end - 1], ends[end - 1]) if end else (self.base, self.base)
            new_starts += [place[0]] * len(content)
            new_ends += [place[1]] * len(content)
            done = end
        text.append(self.text[done:])
        return Aligned("".join(text), self.base, new_starts + starts[done:], new_ends + ends[done:])
