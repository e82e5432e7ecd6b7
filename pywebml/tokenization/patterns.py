"""Regular expressions of `Split` and `Replace`: written for Oniguruma, run by `re`.

The Rust `tokenizers` library matches them with Oniguruma in its own syntax, which is Ruby's. A pattern is read here
and written again for Python, with every class of characters spelled out as the code points that Oniguruma counts to
it, so that the Unicode version of the interpreter is of no account. It is written twice, for any text and for ASCII
text, whose classes are short and therefore fast.

Why `re` where it can: it looks characters up in a bitmap, where `regex` walks through ranges. `regex` runs the
patterns whose time could explode (a group that is repeated, many repetitions one behind the other), since it can be
stopped, and those with a look-behind of no fixed width.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final, Protocol, TypeAlias

from pywebml.errors import TokenizerError
from pywebml.tokenization import code_points as points
from pywebml.tokenization import unicode_categories as unicode
from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.code_points import CodePoints

SECONDS: Final = 10.0
"""After this a pattern whose time could explode is stopped."""

_DEEPEST: Final = 64
_LARGEST_COUNT: Final = 10_000
_MOST_UNBOUNDED: Final = 2
"""Repetitions without a limit, one behind the other, that published patterns have."""

Part: TypeAlias = str | CodePoints
"""A piece of a pattern: text for `re`, or a class to be spelled out."""


class Match(Protocol):
    """What is used of a match."""

    def span(self) -> tuple[int, int]:
        """Start and end."""


class Compiled(Protocol):
    """What is used of a compiled pattern."""

    def finditer(self, string: str) -> Iterator[Match]:
        """All matches."""

    def findall(self, string: str) -> list[str]:
        """The text of all matches."""

    def search(self, string: str, pos: int) -> Match | None:
        """The first match from a position."""

    def split(self, string: str) -> list[str]:
        """What lies between the matches."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A piece of a pattern that was read.

    Attributes:
        parts: How to write it.
        shortest: The fewest characters it can match.
        unbounded: How many times it repeats something without a limit.
        risky: Whether its time could explode: it repeats a group without a limit, or too much one behind the other.
        single: Whether a repetition behind it takes it as a whole.
    """

    parts: tuple[Part, ...]
    shortest: int
    unbounded: int = 0
    risky: bool = False
    single: bool = True


# ------------------------------------------------------------------------------------------------- classes


def _category(*names: str) -> CodePoints:
    return points.union([points.parse(unicode.CATEGORIES[name]) for name in names])


def _of_letter(letter: str) -> tuple[str, ...]:
    return tuple(name for name in unicode.CATEGORIES if name[0] == letter)


_GROUPS: Final[Mapping[str, str]] = {
    "letter": "L",
    "mark": "M",
    "number": "N",
    "punctuation": "P",
    "symbol": "S",
    "separator": "Z",
    "other": "C",
}


def _with(extra: str, *names: str) -> CodePoints:
    return points.union([_category(*names), points.parse(extra)])


def _word() -> CodePoints:
    return _with(unicode.WORD_EXTRA, *_of_letter("L"), *_of_letter("M"), "Nd", "Nl", "Pc")


def _alphabetic() -> CodePoints:
    return _with(unicode.ALPHABETIC_EXTRA, *_of_letter("L"), "Nl")


def _visible() -> CodePoints:
    return _category(*(name for letter in "LMNPS" for name in _of_letter(letter)), "Cf", "Co")


_SHORTHANDS: Final[Mapping[str, Callable[[], CodePoints]]] = {
    "d": lambda: _category("Nd"),
    "h": lambda: points.parse("30-39 41-46 61-66"),
    "s": lambda: points.parse(tables.WHITESPACE),
    "w": _word,
}

_POSIX: Final[Mapping[str, Callable[[], CodePoints]]] = {
    "alnum": lambda: points.union([_alphabetic(), _category("Nd")]),
    "alpha": _alphabetic,
    "alphabetic": _alphabetic,
    "ascii": lambda: points.ASCII,
    "blank": lambda: _with("9", "Zs"),
    "cntrl": lambda: _category("Cc"),
    "digit": _SHORTHANDS["d"],
    "graph": _visible,
    "lower": lambda: _with(unicode.LOWERCASE_EXTRA, "Ll"),
    "print": lambda: points.union([_visible(), _category("Zs")]),
    "punct": lambda: _category(*_of_letter("P"), *_of_letter("S")),
    "space": _SHORTHANDS["s"],
    "upper": lambda: _with(unicode.UPPERCASE_EXTRA, "Lu"),
    "word": _word,
    "xdigit": _SHORTHANDS["h"],
}


@cache
def _named(name: str) -> CodePoints | None:
    """The code points of a property; None when there is no such property."""
    plain = re.sub(r"[\s_-]", "", name).lower()
    if plain == "any":
        return ((0, points.LAST),)
    for category in unicode.CATEGORIES:
        if plain == category.lower():
            return _category(category)
    letter = _GROUPS.get(plain, plain.upper() if len(plain) == 1 else "")
    if letter == "C":
        # What no other group has: unassigned code points count as "other".
        return points.complement(points.union([_category(*_of_letter(one)) for one in "LMNPSZ"]))
    if letter in set("LMNPSZ"):
        return _category(*_of_letter(letter))
    if plain in _POSIX:
        return _POSIX[plain]()
    return _asked(name)


def _asked(name: str) -> CodePoints | None:
    """The code points of a property that is not in our tables, as the package `regex` knows it."""
    engine = _regex(name)
    if re.fullmatch(r"[\w =-]+", name) is None:
        return None
    try:
        pattern = engine.compile(rf"\p{{{name}}}+")
    except engine.error:
        return None
    every = "".join(map(chr, (*range(0xD800), *range(0xE000, points.LAST + 1))))
    found = [(ord(match[0][0]), ord(match[0][-1])) for match in pattern.finditer(every)]
    return points.union([(pair,) for pair in found])


@cache
def _cases() -> Mapping[int, CodePoints]:
    """Characters to all that equal them when case is ignored."""
    groups: dict[str, list[int]] = {}
    for first, last in _category("Lu", "Ll", "Lt", "Mn", "Nl", "So"):
        for point in range(first, last + 1):
            groups.setdefault(chr(point).casefold(), []).append(point)
    sets = [points.union([((point, point),) for point in group]) for group in groups.values() if len(group) > 1]
    return {point: ranges for ranges in sets for first, last in ranges for point in range(first, last + 1)}


@lru_cache(256)
def _closed_over_case(ranges: CodePoints) -> CodePoints:
    """The set and all that equals one of its members when case is ignored."""
    cases = _cases()
    firsts = [first for first, _ in ranges]
    if sum(last - first + 1 for first, last in ranges) <= len(cases):
        members = [point for first, last in ranges for point in range(first, last + 1) if point in cases]
    else:
        places = ((point, bisect_right(firsts, point) - 1) for point in cases)
        members = [point for point, place in places if place >= 0 and point <= ranges[place][1]]
    return points.union([ranges, *{cases[point] for point in members}])


def _regex(pattern: str) -> Any:
    try:
        import regex
    except ImportError as error:
        raise TokenizerError(
            f"The pattern {pattern!r} needs the package 'regex'. Install it.", pattern=pattern
        ) from error
    return regex


# -------------------------------------------------------------------------------------------------- reading


_ANY: Final[CodePoints] = ((0, points.LAST),)
_NO_NEWLINE: Final[CodePoints] = points.complement(((10, 10),))
_NEWLINES: Final[CodePoints] = points.parse("A-D 85 2028-2029")
_WIDE_ESCAPES: Final[Mapping[str, _Node]] = {
    "N": _Node((_NO_NEWLINE,), 1),
    "O": _Node((_ANY,), 1),
    "R": _Node((r"(?>\r\n|", _NEWLINES, ")"), 1),
}
_FLAGS: Final = re.compile(r"\?(-?[imx]+(?:-[imx]+)?):")
_FLAGS_TO_THE_END: Final = re.compile(r"\(\?(-?[imx]+(?:-[imx]+)?)\)")
_ESCAPES: Final[Mapping[str, str]] = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "e": "\x1b"}
_GROUP_STARTS: Final = ("?:", "?=", "?!", "?<=", "?<!", "?>")
_ASSERTIONS: Final = ("?=", "?!", "?<=", "?<!")


class _Reader:
    """Reads one pattern by recursive descent."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0
        self._ignores_case = False
        self._dot_is_any = False

    def read(self) -> _Node:
        node = self._alternatives()
        if self._at < len(self._source):
            raise self._error("has a ')' without its '('")
        return node

    def _error(self, problem: str) -> TokenizerError:
        shown = self._source if len(self._source) <= 200 else f"{self._source[:200]}…"
        return TokenizerError(
            f"The pattern {shown!r} {problem} (at {self._at}). It cannot be used.", pattern=shown, position=self._at
        )

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _take(self, text: str) -> bool:
        if self._peek(text):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        if self._at >= len(self._source):
            raise self._error("ends too early")
        self._at += 1
        return self._source[self._at - 1]

    def _alternatives(self) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(f"nests more than {_DEEPEST} groups")
        branches = [self._branch()]
        while self._take("|"):
            branches.append(self._branch())
        self._depth -= 1
        parts: list[Part] = []
        for index, branch in enumerate(branches):
            parts += ("|", *branch.parts) if index else branch.parts
        return _Node(
            tuple(parts),
            min(branch.shortest for branch in branches),
            max(branch.unbounded for branch in branches),
            any(branch.risky for branch in branches),
            single=False,
        )

    def _branch(self) -> _Node:
        nodes: list[_Node] = []
        while self._at < len(self._source) and not self._peek("|") and not self._peek(")"):
            flags = _FLAGS_TO_THE_END.match(self._source, self._at)
            if flags is not None:
                # They hold to the end of the group, alternatives behind them included.
                self._at = flags.end()
                nodes.append(self._flagged(flags[1]))
                break
            nodes.append(self._repeated(self._atom()))
        return _Node(
            tuple(part for node in nodes for part in node.parts),
            sum(node.shortest for node in nodes),
            sum(node.unbounded for node in nodes),
            any(node.risky for node in nodes) or sum(node.unbounded for node in nodes) > _MOST_UNBOUNDED,
            single=False,
        )

    def _flagged(self, flags: str) -> _Node:
        """What follows, read under flags."""
        before = self._ignores_case, self._dot_is_any
        on, _, off = flags.partition("-")
        if set(on + off) - {"i", "m"}:
            raise self._error(f"sets the flags {flags!r}, of which only 'i' and 'm' are supported")
        for names, value in ((on, True), (off, False)):
            if "i" in names:
                self._ignores_case = value
            if "m" in names:
                self._dot_is_any = value
        node = self._alternatives()
        self._ignores_case, self._dot_is_any = before
        return _Node(("(?:", *node.parts, ")"), node.shortest, node.unbounded, node.risky)

    def _atom(self) -> _Node:
        character = self._next()
        if character == "(":
            return self._group()
        if character == "[":
            return _Node((self._class(),), 1)
        if character == ".":
            return _Node((_ANY if self._dot_is_any else _NO_NEWLINE,), 1)
        if character in "^$":
            # Lines, always: that is Ruby's way.
            return _Node((f"(?m:{character})",), 0)
        if character == "\\":
            return self._escape()
        if character in "*+?":
            raise self._error(f"repeats nothing with {character!r}")
        return self._literal(ord(character))

    def _literal(self, point: int) -> _Node:
        alone: CodePoints = ((point, point),)
        equals = _closed_over_case(alone) if self._ignores_case else alone
        return _Node((equals if equals != alone else re.escape(chr(point)),), 1)

    def _group(self) -> _Node:
        if self._take("?#"):
            while self._next() != ")":
                pass
            return _Node((), 0)
        flags = _FLAGS.match(self._source, self._at)
        if flags is not None:
            self._at = flags.end()
            node = self._flagged(flags[1])
            self._close()
            return node
        start = next((start for start in _GROUP_STARTS if self._take(start)), "?:")
        if start == "?:":
            name = re.compile(r"\?<(\w+)>").match(self._source, self._at)
            if name is not None:
                self._at = name.end()
            elif self._peek("?"):
                raise self._error(f"has a group of the kind {self._source[self._at : self._at + 3]!r}")
        node = self._alternatives()
        self._close()
        shortest = 0 if start in _ASSERTIONS else node.shortest
        return _Node((f"({start}", *node.parts, ")"), shortest, node.unbounded, node.risky)

    def _close(self) -> None:
        if not self._take(")"):
            raise self._error("has a '(' without its ')'")

    def _repeated(self, node: _Node) -> _Node:
        while True:
            interval = re.compile(r"\{(\d*)(,?)(\d*)\}").match(self._source, self._at)
            if interval is not None and (interval[1] or interval[3]):
                self._at = interval.end()
                node = self._interval(node, interval)
            elif self._at < len(self._source) and self._source[self._at] in "*+?":
                sign = self._next()
                least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
                suffix = "?" if self._take("?") else "+" if self._take("+") else ""
                node = self._times(node, sign + suffix, least, most)
            else:
                return node

    def _interval(self, node: _Node, interval: re.Match[str]) -> _Node:
        least = int(interval[1] or 0)
        most = (int(interval[3]) if interval[3] else None) if interval[2] else least
        if max(least, most or 0) > _LARGEST_COUNT or (most is not None and most < least):
            raise self._error(f"repeats {interval[0]} times")
        if not interval[2] and self._take("?"):
            # Ruby's `x{3}?` is an optional x{3}, not a reluctant one.
            return self._times(self._times(node, f"{{{least}}}", least, least), "?", 0, 1)
        suffix = "?" if self._take("?") else ""
        # A "+" behind an interval is one more repetition, not a possessive one; the loop in `_repeated` reads it.
        sign = f"{{{least},{'' if most is None else most}}}" if interval[2] else f"{{{least}}}"
        return self._times(node, sign + suffix, least, most)

    @staticmethod
    def _times(node: _Node, sign: str, least: int, most: int | None) -> _Node:
        parts = node.parts if node.single and len(node.parts) > 0 else ("(?:", *node.parts, ")")
        repeats = most is None
        return _Node(
            (*parts, sign),
            node.shortest * least,
            unbounded=node.unbounded + repeats,
            risky=node.risky or (repeats and len(node.parts) > 1),
            single=False,
        )

    def _escape(self) -> _Node:
        character = self._next()
        if character in "AzZ":
            return _Node(({"A": r"\A", "z": r"\Z", "Z": r"(?=\n?\Z)"}[character],), 0)
        if character in "bB":
            word = points.union([_word(), points.parse(unicode.WORD_EXTRA_OUTSIDE_CLASSES)])
            at_edge: tuple[Part, ...] = ("(?:(?<=", word, ")(?!", word, ")|(?<!", word, ")(?=", word, "))")
            inside: tuple[Part, ...] = ("(?:(?<=", word, ")(?=", word, ")|(?<!", word, ")(?!", word, "))")
            return _Node(at_edge if character == "b" else inside, 0)
        if character in _WIDE_ESCAPES:
            return _WIDE_ESCAPES[character]
        self._at -= 1
        members = self._escaped_set()
        if self._ignores_case:
            members = _closed_over_case(members)
        if character in "wW":
            extra = points.parse(unicode.WORD_EXTRA_OUTSIDE_CLASSES)
            outside = points.intersection(members, points.complement(extra))
            members = points.union((members, extra)) if character == "w" else outside
        return _Node((members,), 1)

    def _escaped_set(self) -> CodePoints:
        """What the escape behind a backslash stands for: a class or a character."""
        character = self._next()
        if character.lower() in _SHORTHANDS:
            found = _SHORTHANDS[character.lower()]()
            return found if character.islower() else points.complement(found)
        if character in "pP":
            return self._property(negated=character == "P")
        point = self._escaped_point(character)
        return ((point, point),)

    def _escaped_point(self, character: str) -> int:
        if character in _ESCAPES:
            return ord(_ESCAPES[character])
        for kind, digits in (("x", r"\{([0-9a-fA-F]{1,8})\}|([0-9a-fA-F]{1,2})"), ("u", r"([0-9a-fA-F]{4})")):
            if character == kind:
                match = re.compile(digits).match(self._source, self._at)
                if match is None:
                    raise self._error(f"has no number behind '\\{kind}'")
                self._at = match.end()
                value = int(next(filter(None, match.groups())), 16)
                if value > points.LAST:
                    raise self._error("names a character beyond Unicode")
                return value
        octal = re.compile(r"0[0-7]{0,2}|[1-3][0-7]{2}").match(self._source, self._at - 1)
        if octal is not None:
            self._at = octal.end()
            return int(octal[0], 8)
        if character.isascii() and character.isalnum():
            raise self._error(f"has '\\{character}', which is not supported")
        return ord(character)

    def _property(self, *, negated: bool) -> CodePoints:
        match = re.compile(r"\{(\^?)([^{}]+)\}").match(self._source, self._at)
        if match is None:
            raise self._error("has no name in braces behind '\\p'")
        self._at = match.end()
        found = _named(match[2])
        if found is None:
            raise self._error(f"has the property {match[2]!r}, which is unknown")
        return points.complement(found) if negated != bool(match[1]) else found

    def _class(self) -> CodePoints:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(f"nests more than {_DEEPEST} classes")
        negated = self._take("^")
        whole: CodePoints | None = None
        sets: list[CodePoints] = []
        first = True
        while first or not self._take("]"):
            if self._take("&&"):
                part = points.union(sets)
                whole = part if whole is None else points.intersection(whole, part)
                sets = []
            elif self._take("["):
                posix = re.compile(r":(\^?)(\w+):\]").match(self._source, self._at)
                if posix is not None:
                    self._at = posix.end()
                    sets.append(self._posix(posix[2], negated=bool(posix[1])))
                else:
                    sets.append(self._class())
            else:
                sets.append(self._range())
            first = False
        self._depth -= 1
        part = points.union(sets)
        whole = part if whole is None else points.intersection(whole, part)
        if self._ignores_case:
            whole = _closed_over_case(whole)
        return points.complement(whole) if negated else whole

    def _posix(self, name: str, *, negated: bool) -> CodePoints:
        if name not in _POSIX:
            raise self._error(f"has the class [:{name}:], which is not supported")
        return points.complement(_POSIX[name]()) if negated else _POSIX[name]()

    def _range(self) -> CodePoints:
        """A member of a class: a character, an escape or a range of characters."""
        left = self._member()
        behind = self._source[self._at : self._at + 2]
        if len(behind) < 2 or behind[0] != "-" or behind[1] in "][" or len(left) != 1 or left[0][0] != left[0][1]:
            return left
        self._at += 1
        right = self._member()
        if len(right) != 1 or right[0][0] != right[0][1]:
            return points.union([left, ((45, 45),), right])
        if right[0][0] < left[0][0]:
            raise self._error("has a range whose end lies before its start")
        return ((left[0][0], right[0][0]),)

    def _member(self) -> CodePoints:
        character = self._next()
        if character == "\\":
            if self._take("b"):
                return ((8, 8),)
            return self._escaped_set()
        return ((ord(character), ord(character)),)


# ------------------------------------------------------------------------------------------------- matching


class Pattern:
    """A pattern that finds its matches as Oniguruma does.

    Args:
        node: What was read.
        source: For messages.
    """

    def __init__(self, node: _Node, source: str) -> None:
        self._node = node
        self._source = source
        self.can_be_empty = node.shortest == 0
        self._ascii: Compiled | None = None
        self._any: Compiled | None = None

    @classmethod
    def parse(cls, source: str) -> Pattern:
        """Read a regular expression in Oniguruma's syntax.

        Raises:
            TokenizerError: It is malformed or has something that is not supported.
        """
        pattern = cls(_Reader(source).read(), source)
        pattern.compiled("")
        return pattern

    @classmethod
    def literal(cls, text: str) -> Pattern:
        """The pattern that matches a text as it stands."""
        return cls(_Node((re.escape(text),), len(text)), text)

    def compiled(self, text: str) -> Compiled:
        """The form for a text: matches are groups of their own, so that `split` keeps them."""
        if text.isascii():
            if self._ascii is None:
                self._ascii = self._compile(ascii_only=True)
            return self._ascii
        if self._any is None:
            self._any = self._compile(ascii_only=False)
        return self._any

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each match."""
        compiled = self.compiled(text)
        try:
            if not self.can_be_empty:
                return [match.span() for match in compiled.finditer(text)]
            return self._spans_with_empty(compiled, text)
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def matches(self, text: str) -> list[str]:
        """The text of each match, none of them empty."""
        if self.can_be_empty:
            return [text[start:end] for start, end in self.spans(text) if start < end]
        try:
            return self.compiled(text).findall(text)
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def pieces(self, text: str) -> list[str]:
        """Matches and what lies between them, in their order, none of them empty."""
        if self.can_be_empty:
            return [text[start:end] for start, end, _ in self.covering(text) if start < end]
        try:
            return list(filter(None, self.compiled(text).split(text)))
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def covering(self, text: str) -> list[tuple[int, int, bool]]:
        """Ranges that cover the whole text, each with whether it is a match."""
        found: list[tuple[int, int, bool]] = []
        done = 0
        for start, end in self.spans(text):
            if done != start:
                found.append((done, start, False))
            found.append((start, end, True))
            done = end
        if done != len(text):
            found.append((done, len(text), False))
        return found

    @staticmethod
    def _spans_with_empty(compiled: Compiled, text: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        position = 0
        last_end = -1
        while position <= len(text):
            match = compiled.search(text, position)
            if match is None:
                break
            start, end = match.span()
            # No empty match right behind another match: the search goes on one character further.
            if start == end == last_end:
                position += 1
            else:
                found.append((start, end))
                position = last_end = end
        return found

    def _compile(self, *, ascii_only: bool) -> Compiled:
        written: list[str] = []
        for part in self._node.parts:
            if isinstance(part, str):
                written.append(part)
            else:
                kept = points.intersection(part, points.ASCII) if ascii_only else part
                written.append(ascii_class(kept) if ascii_only else points.character_class(kept))
        text = f"({''.join(written)})"
        try:
            if not self._node.risky:
                with suppress(re.error):
                    # A look-behind of no fixed width is an error to `re` alone.
                    return re.compile(text)
            return _Stoppable(_regex(self._source).compile(text))
        except (_regex(self._source).error, OverflowError, RecursionError) as error:
            raise TokenizerError(
                f"The pattern {self._source!r} cannot be used: {error}.", pattern=self._source
            ) from error

    def _too_slow(self, text: str) -> TokenizerError:
        return TokenizerError(
            f"The pattern {self._source!r} was stopped after {SECONDS:g} s on a text of {len(text)} characters: its "
            "time can explode. Use another model.",
            pattern=self._source,
            seconds=SECONDS,
        )


def ascii_class(ranges: CodePoints) -> str:
    """A regular expression for one character of the set, in text of ASCII: what is beyond is of no account."""
    outside = points.intersection(points.complement(ranges), points.ASCII)
    if not outside:
        return r"[\s\S]"
    return points.character_class(ranges if len(ranges) <= len(outside) else points.complement(outside))


class _Stoppable:
    """A pattern of the package `regex` that gives up after `SECONDS`."""

    def __init__(self, pattern: Any) -> None:
        self._pattern = pattern

    def finditer(self, string: str) -> Iterator[Match]:
        matches: Iterator[Match] = self._pattern.finditer(string, timeout=SECONDS)
        return matches

    def findall(self, string: str) -> list[str]:
        found: list[str] = self._pattern.findall(string, timeout=SECONDS)
        return found

    def search(self, string: str, pos: int) -> Match | None:
        match: Match | None = self._pattern.search(string, pos, timeout=SECONDS)
        return match

    def split(self, string: str) -> list[str]:
        parts: list[str] = self._pattern.split(string, timeout=SECONDS)
        return parts
