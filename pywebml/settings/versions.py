"""Order of versions, as in Firefox.

Source: Mozilla's toolkit version format (`nsIVersionComparator`). A version is parts between dots; a part is
`<number><text><number><text>`, each of them optional. `1.0pre1` < `1.0pre2` < `1.0` = `1.0.0` < `1.0.1`; a part with
text after its number is older than the one without; `*` is larger than any number; `1.0+` means `1.1pre`.
"""

from __future__ import annotations

import re
from functools import total_ordering
from itertools import zip_longest

_PART = re.compile(r"(-?\d+)?([^\d+-]*)([+-]?\d+)?(.*)", re.DOTALL | re.ASCII)
_MOST_DIGITS = 18
_LARGEST: int = 10**_MOST_DIGITS


@total_ordering
class _Text:
    """Text in a version: none is newer than any."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Text) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __lt__(self, other: _Text) -> bool:
        if not self._text or not other._text:
            return bool(self._text)
        return self._text < other._text


def compare_versions(left: str, right: str) -> int:
    """-1, 0 or 1: whether `left` is older than, as new as, or newer than `right`."""
    for mine, theirs in zip_longest(left.split("."), right.split("."), fillvalue=""):
        one, other = _part(mine), _part(theirs)
        if one < other:
            return -1
        if one > other:
            return 1
    return 0


def _part(part: str) -> tuple[int, _Text, int, _Text]:
    if part == "*":
        return _LARGEST, _Text(""), 0, _Text("")
    match = _PART.fullmatch(part)
    assert match is not None
    number, text, second, rest = match.groups()
    first = _number(number)
    if not text and not second and rest == "+":
        return first + 1, _Text("pre"), 0, _Text("")
    return first, _Text(text), _number(second), _Text(rest)


def _number(digits: str | None) -> int:
    return max(-_LARGEST, min(int((digits or "0")[: _MOST_DIGITS + 1]), _LARGEST))
