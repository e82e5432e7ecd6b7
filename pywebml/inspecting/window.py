"""How the parsers get bytes: they ask for what they need, and whoever drives them reads it from wherever it is.

A parser is a generator that yields the ranges it wants, one at a time, and is sent their bytes. So the same code reads
a file, an HTTP server by ranges, or a blob of the browser, and skips what it does not need.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import TypeAlias, TypeVar

from pywebml.errors import InspectionError

Wanted: TypeAlias = tuple[int, int]
"""First byte, and the byte behind the last one."""

Result = TypeVar("Result")
Parser: TypeAlias = Generator[Wanted, bytes, Result]

FIRST_BLOCK = 64 * 1024
SMALLEST_BLOCK, LARGEST_BLOCK = 16 * 1024, 1024 * 1024
"""Bytes that are asked for at least: few after a jump, more and more while one thing follows on the other."""


class Window:
    """The bytes that a parser holds: one range of a file at a time.

    Args:
        size: Of the file.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._block = FIRST_BLOCK // 2
        self._begin = 0
        self._data = b""

    def need(self, begin: int, end: int) -> Parser[bytes]:
        """The bytes from `begin` to `end` (without it), and what was asked for along with them stays at hand.

        Raises:
            InspectionError: The file ends before.
        """
        if end > self.size:
            raise InspectionError(
                f"The file ends after {self.size} bytes, in the middle of something that goes to byte {end}. Is it cut "
                "off?",
                offset=begin,
                size=self.size,
            )
        if not (self._begin <= begin and end <= self._begin + len(self._data)):
            follows = self._begin <= begin <= self._begin + len(self._data)
            self._block = min(2 * self._block, LARGEST_BLOCK) if follows else SMALLEST_BLOCK
            wanted = (begin, min(self.size, max(end, begin + self._block)))
            data = yield wanted
            if len(data) != wanted[1] - wanted[0]:
                raise InspectionError(
                    f"{len(data)} bytes came where {wanted[1] - wanted[0]} were asked for, at byte {begin}.",
                    offset=begin,
                )
            self._begin, self._data = begin, data
        return self._data[begin - self._begin : end - self._begin]

    def at_hand(self, begin: int) -> tuple[bytes, int]:
        """What is held, and where `begin` is in it; a place outside counts as its end."""
        index = begin - self._begin
        return (self._data, index) if 0 <= index <= len(self._data) else (b"", 0)


def drive(parser: Parser[Result], read: Callable[[int, int], bytes]) -> Result:
    """Run a parser on bytes that can be read at once.

    Args:
        parser: Just made.
        read: Gives the bytes from `begin` to `end`.
    """
    try:
        wanted = next(parser)
        while True:
            wanted = parser.send(read(*wanted))
    except StopIteration as stop:
        result: Result = stop.value
        return result


async def drive_async(parser: Parser[Result], read: Callable[[int, int], Awaitable[bytes]]) -> Result:
    """Run a parser on bytes that have to be waited for; see `drive`."""
    try:
        wanted = next(parser)
        while True:
            wanted = parser.send(await read(*wanted))
    except StopIteration as stop:
        result: Result = stop.value
        return result
