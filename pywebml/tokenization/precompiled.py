"""The normalizer `Precompiled`: a table of replacements that SentencePiece compiled into its model.

The table is a double-array trie over UTF-8 bytes, each entry of which points into a text of replacements separated by
NUL. Source: Darts-clone, as `sentencepiece` and the Rust `spm_precompiled` read it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from functools import cache

import numpy as np

from pywebml.errors import TokenizerError
from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.alignment import Aligned

# Longer graphemes are looked up character by character; so are, in effect, all of one character.
_LONGEST_GRAPHEME = 5
_REMEMBERED = 1 << 16


@cache
def _graphemes() -> re.Pattern[str]:
    """Graphemes of several characters, as far as they can have five bytes or fewer: no syllables or flags."""
    extends = tables.character_class(tables.GRAPHEME_EXTENDS)
    prepends = tables.character_class(tables.GRAPHEME_PREPENDS)
    controls = tables.character_class(tables.GRAPHEME_CONTROLS)
    return re.compile(
        f"\\r\\n|[{prepends}]+[^{controls}{extends}{prepends}\\r\\n][{extends}]*|[{prepends}]+[{extends}]*"
        f"|[^{controls}\\r\\n][{extends}]+"
    )


class Precompiled:
    """The normalizer.

    Args:
        units: The trie.
        replacements: The text into which it points, as UTF-8 bytes.
    """

    def __init__(self, units: list[int], replacements: bytes) -> None:
        self._units = units
        self._replacements = replacements
        self._known: dict[str, str | None] = {}

    def normalize(self, text: str) -> str:
        """The rewritten text."""
        return "".join(new for _, new in self._steps(text))

    def align(self, piece: Aligned) -> Aligned:
        """The same, with the place of each character."""
        changes: list[tuple[str, int]] = []
        for old, new in self._steps(piece.text):
            if old == new:
                changes += [(character, 0) for character in new]
                continue
            surplus = len(new) - len(old)
            changes += [(character, int(index >= len(old))) for index, character in enumerate(new)]
            if surplus < 0 and changes:
                # The library counts what goes at the last character before, which at the very start is none.
                character, change = changes[-1]
                changes[-1] = (character, change + surplus)
        return piece.transformed(changes)

    def _steps(self, text: str) -> Iterator[tuple[str, str]]:
        """Pieces of the text, each with what it becomes."""
        done = 0
        for match in _graphemes().finditer(text) if not text.isascii() or "\r" in text else ():
            grapheme = match[0]
            if len(grapheme.encode()) > _LONGEST_GRAPHEME:
                continue
            new = self._looked_up(grapheme)
            if new is None:
                continue
            yield from self._characters(text[done : match.start()])
            yield grapheme, new
            done = match.end()
        yield from self._characters(text[done:])

    def _characters(self, text: str) -> Iterator[tuple[str, str]]:
        for character in text:
            new = self._looked_up(character)
            yield character, character if new is None else new

    def _looked_up(self, text: str) -> str | None:
        try:
            return self._known[text]
        except KeyError:
            found = self._search(text.encode())
            if len(self._known) < _REMEMBERED:
                self._known[text] = found
            return found

    def _search(self, key: bytes) -> str | None:
        """The replacement of the shortest entry that the key begins with."""
        units = self._units
        unit = units[0]
        node = _offset(unit)
        for byte in key:
            if byte == 0:
                return None
            node ^= byte
            if node >= len(units):
                return None
            unit = units[node]
            if unit & 0x800000FF != byte:
                return None
            node ^= _offset(unit)
            if unit & 0x100:
                if node >= len(units):
                    return None
                start = units[node] & 0x7FFFFFFF
                end = self._replacements.find(b"\0", start)
                return self._replacements[start : end if end >= 0 else None].decode(errors="replace")
        return None


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def read_precompiled(encoded: str, place: str) -> Precompiled:
    """Read the table from its base64.

    Raises:
        TokenizerError: It is malformed.
    """
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenizerError(f"{place} is not base64: {error}. The file is damaged.", place=place) from error
    return precompiled_from_bytes(data, place)


def precompiled_from_bytes(data: bytes, place: str) -> Precompiled:
    """Read the table from its bytes: the size of the trie, the trie, the replacements.

    Raises:
        TokenizerError: It is malformed.
    """
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size < 4 or size % 4 or 4 + size > len(data):
        raise TokenizerError(f"{place} is no table of replacements. The file is damaged.", place=place)
    units = np.frombuffer(data, "<u4", size // 4, 4)
    replacements = data[4 + size :]
    try:
        replacements.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"{place} has replacements that are not UTF-8. The file is damaged.", place=place
        ) from error
    return Precompiled(units.tolist(), replacements)
