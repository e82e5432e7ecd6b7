"""Unicode normalization forms, of the version that the Rust `tokenizers` library knows."""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache
from typing import Literal, TypeAlias

from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.alignment import Aligned

Form: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]
_Change: TypeAlias = tuple[str, int]


@cache
def _unknown_to(form: Form) -> re.Pattern[str]:
    sets = [tables.UNKNOWN_TO_CANONICAL]
    if form in ("NFKC", "NFKD"):
        sets.append(tables.UNKNOWN_TO_COMPATIBILITY)
    return re.compile(f"([{tables.character_class(*sets)}])")


def normalize_unicode(form: Form, text: str) -> str:
    """A Unicode normalization form, as of the version that the Rust library knows."""
    if text.isascii():
        return text
    # What that version did not know is an inert starter to it: nothing composes with it or moves past it. So the
    # stretches between such characters (odd positions of the split) can be normalized alone.
    parts = _unknown_to(form).split(text)
    for index in range(0, len(parts), 2):
        parts[index] = unicodedata.normalize(form, parts[index])
    return "".join(parts)


@lru_cache(1 << 14)
def _decomposed(form: Form, character: str) -> str:
    """A character taken apart."""
    return normalize_unicode("NFD" if form in ("NFC", "NFD") else "NFKD", character)


@lru_cache(1 << 14)
def _combining_class(form: Form, character: str) -> int:
    return 0 if _unknown_to(form).match(character) else unicodedata.combining(character)


@lru_cache(1 << 14)
def _composed(left: str, right: str) -> str | None:
    """Two characters as one, if they compose."""
    joined = normalize_unicode("NFC", left + right)
    # Where the left one alone changes, the two did not compose; that is no composition of this pair.
    return joined if len(joined) == 1 else None


def normalize_unicode_aligned(form: Form, piece: Aligned) -> Aligned:
    """The same as `normalize_unicode`, with the place of each character.

    The places are the library's: they follow how many characters each step adds or takes away, one after the other.
    So a mark that was moved past another one has the place where it now stands, not the one where it came from.
    """
    if normalize_unicode(form, piece.text) == piece.text:
        return piece
    changes = _decomposition(form, piece.text)
    if form in ("NFC", "NFKC"):
        changes = _composition(form, changes)
    return piece.transformed(changes)


def _decomposition(form: Form, text: str) -> list[_Change]:
    """Characters in canonical order; the first of each old character has change 0, the others 1."""
    found: list[_Change] = []
    marks: list[tuple[int, _Change]] = []
    for character in text:
        for index, part in enumerate(_decomposed(form, character)):
            combining = _combining_class(form, part)
            change = (part, int(index > 0))
            if combining:
                marks.append((combining, change))
                continue
            if marks:
                found += [change for _, change in sorted(marks, key=lambda mark: mark[0])]
                marks.clear()
            found.append(change)
    found += [change for _, change in sorted(marks, key=lambda mark: mark[0])]
    return found


def _composition(form: Form, changes: list[_Change]) -> list[_Change]:
    """Characters put together again; each counts what it took in."""
    found: list[_Change] = []
    starter: int | None = None
    last_class = -1
    for character, change in changes:
        combining = _combining_class(form, character)
        if starter is not None and (last_class == -1 or last_class < combining):
            base, base_change = found[starter]
            joined = _composed(base, character)
            if joined is not None:
                found[starter] = (joined, base_change + change - 1)
                continue
        if combining == 0:
            starter = len(found)
            last_class = -1
        else:
            last_class = combining
        found.append((character, change))
    return found
