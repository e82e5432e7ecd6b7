"""Decoding token by token, as a model generates them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

_UNREADABLE: Final = "\ufffd"


class DecodeStream:
    """Text for tokens that come one by one, or a few at a time; never half a character.

    Made by `Tokenizer.decode_stream`. The pieces joined are what decoding all tokens at once gives. Source:
    `DecodeStream` of the Rust `tokenizers`.

    Args:
        decode: Makes text of ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._prefix = ""
        self._prefix_ids = 0

    def step(self, ids: int | Iterable[int]) -> str:
        """Take tokens in and give out the text that they complete; empty when they complete none.

        Raises:
            TokenizerError: An id is not a number of a token.
        """
        if not self._prefix and self._ids:
            prefix = self._decode(self._ids)
            if not prefix.endswith(_UNREADABLE):
                self._prefix = prefix
                self._prefix_ids = len(self._ids)
        self._ids += [ids] if isinstance(ids, int) else ids
        text = self._decode(self._ids)
        # Behind an unreadable end there may come the rest of a character.
        if len(text.encode()) <= len(self._prefix.encode()) or text.endswith(_UNREADABLE):
            return ""
        return self._emit(text)

    def finish(self) -> str:
        """The rest: what was held back since it may have been half a character. The stream starts anew."""
        text = self._decode(self._ids) if self._ids else ""
        rest = text[_common(text, self._prefix) :]
        self._ids, self._prefix, self._prefix_ids = [], "", 0
        return rest

    def _emit(self, text: str) -> str:
        # What a later token changed in text that is already out stays as it is.
        new = text[_common(text, self._prefix) :]
        kept = len(self._ids) - self._prefix_ids
        self._ids = self._ids[self._prefix_ids :]
        self._prefix = self._decode(self._ids)
        self._prefix_ids = kept
        return new


def _common(left: str, right: str) -> int:
    """How many characters two texts begin with in common."""
    if left.startswith(right):
        return len(right)
    pairs = zip(left, right, strict=False)
    return next((index for index, (one, other) in enumerate(pairs) if one != other), len(left))
