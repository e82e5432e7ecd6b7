"""Sets of code points: sorted ranges that neither touch nor overlap."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Final, TypeAlias

CodePoints: TypeAlias = tuple[tuple[int, int], ...]

LAST: Final = 0x10FFFF
ASCII: Final[CodePoints] = ((0, 0x7F),)


def union(sets: Iterable[CodePoints]) -> CodePoints:
    """What is in any of the sets."""
    filled = [ranges for ranges in sets if ranges]
    if len(filled) == 1:
        return filled[0]
    merged: list[tuple[int, int]] = []
    for first, last in sorted(chain.from_iterable(filled)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def complement(ranges: CodePoints) -> CodePoints:
    """What is not in the set."""
    found: list[tuple[int, int]] = []
    start = 0
    for first, last in ranges:
        if start < first:
            found.append((start, first - 1))
        start = last + 1
    if start <= LAST:
        found.append((start, LAST))
    return tuple(found)


def intersection(left: CodePoints, right: CodePoints) -> CodePoints:
    """What is in both sets."""
    few, many = sorted((left, right), key=len)
    found: list[tuple[int, int]] = []
    for first, last in few:
        # From the first range that does not end before this one begins.
        index = bisect_left(many, first, key=itemgetter(1))
        while index < len(many) and many[index][0] <= last:
            found.append((max(first, many[index][0]), min(last, many[index][1])))
            index += 1
    return tuple(found)


@lru_cache(128)
def parse(table: str) -> CodePoints:
    """A set as `unicode_tables` writes it: ranges in hexadecimal."""
    bounds = (item.partition("-") for item in table.split())
    return union([((int(first, 16), int(last or first, 16)),) for first, _, last in bounds])


def character_class(ranges: CodePoints) -> str:
    """A regular expression that matches one character of the set."""
    if not ranges:
        return "(?!)"
    if ranges == ((0, LAST),):
        return r"[\s\S]"
    # The shorter of the two ways to write it compiles faster.
    outside = complement(ranges)
    if len(outside) < len(ranges):
        return f"[^{_inside(outside)}]"
    return f"[{_inside(ranges)}]"


def _inside(ranges: CodePoints) -> str:
    return "".join(
        _escaped(first) if first == last else f"{_escaped(first)}-{_escaped(last)}" for first, last in ranges
    )


def _escaped(point: int) -> str:
    return f"\\x{point:02x}" if point < 0x100 else f"\\U{point:08x}"
