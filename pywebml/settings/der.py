"""Reading DER (X.690), strictly: every value has one spelling, and any other is refused.

Only what certificates need. Nothing here recurses, so nesting is bounded by the callers' own steps.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
SEQUENCE = 0x30
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18

_LONGEST_LENGTH = 4


class DerError(ValueError):
    """These bytes are not the DER that was expected."""


class Reader:
    """Reads one value after the other from the contents of a constructed value.

    Args:
        data: The contents.
        what: What they are, for errors.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._at = 0
        self._what = what

    def at_end(self) -> bool:
        """Whether everything is read."""
        return self._at == len(self._data)

    def peek(self) -> int:
        """The tag of the next value; -1 at the end."""
        return -1 if self.at_end() else self._data[self._at]

    def read(self, tag: int) -> bytes:
        """The contents of the next value, which must have this tag."""
        return self._next(tag)[1]

    def read_whole(self, tag: int) -> bytes:
        """The next value with its tag and length."""
        return self._next(tag)[0]

    def enter(self, tag: int, what: str) -> Reader:
        """A reader of the next value's contents."""
        return Reader(self.read(tag), what)

    def end(self) -> None:
        """Refuse anything that is left."""
        if not self.at_end():
            raise DerError(f"{self._what} has {len(self._data) - self._at} bytes too many")

    def each(self, tag: int) -> Iterator[bytes]:
        """The contents of all values to the end, which must have this tag."""
        while not self.at_end():
            yield self.read(tag)

    def _next(self, tag: int) -> tuple[bytes, bytes]:
        """The next value as a whole, and its contents."""
        data, start = self._data, self._at
        if len(data) - start < 2:
            raise DerError(f"{self._what} ends too early")
        if data[start] != tag:
            raise DerError(f"{self._what} has tag 0x{data[start]:02x} where 0x{tag:02x} belongs")
        length, at = data[start + 1], start + 2
        if length >= 0x80:
            count = length - 0x80
            if not 1 <= count <= _LONGEST_LENGTH or len(data) - at < count:
                raise DerError(f"{self._what} has a length that is not DER")
            length = int.from_bytes(data[at : at + count], "big")
            # DER: the short form below 128, and no leading zeros.
            if length < 0x80 or length < 1 << (8 * (count - 1)):
                raise DerError(f"{self._what} has a length that is not DER")
            at += count
        if len(data) - at < length:
            raise DerError(f"{self._what} ends too early")
        self._at = at + length
        return data[start : self._at], data[at : self._at]


def read_only(data: bytes, tag: int, what: str) -> Reader:
    """A reader of the contents of the only value in `data`."""
    outer = Reader(data, what)
    inner = outer.enter(tag, what)
    outer.end()
    return inner


def integer(content: bytes) -> int:
    """An INTEGER in the fewest bytes."""
    if not content or (len(content) > 1 and (content[0], content[1] >> 7) in {(0x00, 0), (0xFF, 1)}):
        raise DerError("an integer is not in its shortest form")
    return int.from_bytes(content, "big", signed=True)


def boolean(content: bytes) -> bool:
    """A BOOLEAN: 00 or FF."""
    if content not in {b"\x00", b"\xff"}:
        raise DerError("a boolean is neither 00 nor FF")
    return content == b"\xff"


def whole_bytes(content: bytes) -> bytes:
    """A BIT STRING that is a string of bytes."""
    if not content or content[0] != 0:
        raise DerError("a bit string is not made of whole bytes")
    return content[1:]


def named_bits(content: bytes) -> frozenset[int]:
    """The numbers of the bits that are set in a BIT STRING; DER leaves out trailing zeros."""
    if not content or content[0] > 7:
        raise DerError("a bit string is malformed")
    unused, body = content[0], content[1:]
    # The last bit that is written is one that is set, and what fills up its byte is zero.
    shortest = body[-1] & ((2 << unused) - 1) == 1 << unused if body else unused == 0
    if not shortest:
        raise DerError("a bit string is not in its shortest form")
    return frozenset(8 * index + bit for index, byte in enumerate(body) for bit in range(8) if byte & 0x80 >> bit)


def oid(content: bytes) -> str:
    """An OBJECT IDENTIFIER in dotted form."""
    if not content or content[-1] & 0x80:
        raise DerError("an object identifier is malformed")
    numbers: list[int] = []
    value, started = 0, False
    for byte in content:
        if not started and byte == 0x80:
            raise DerError("an object identifier is not in its shortest form")
        value, started = value << 7 | byte & 0x7F, byte >= 0x80
        if not started:
            numbers.append(value)
            value = 0
        elif value >= 1 << 64:
            raise DerError("an object identifier has too large a number")
    first = min(numbers[0] // 40, 2)
    return ".".join(str(number) for number in (first, numbers[0] - 40 * first, *numbers[1:]))


def time(tag: int, content: bytes) -> int:
    """A UTCTime or GeneralizedTime in the form of RFC 5280, as seconds since the epoch."""
    digits = {UTC_TIME: 12, GENERALIZED_TIME: 14}[tag]
    if len(content) != digits + 1 or content[-1:] != b"Z" or not content[:-1].isdigit():
        raise DerError("a time is malformed")
    text = content[:-1].decode("ascii")
    if tag == UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    year, (month, day, hour, minute, second) = int(text[:4]), (int(text[at : at + 2]) for at in range(4, 14, 2))
    if not (year >= 1950 and 1 <= month <= 12 and hour < 24 and minute < 60 and second < 60):
        raise DerError("a time is no time of the calendar")
    if not 1 <= day <= calendar.monthrange(year, month)[1]:
        raise DerError("a time is no time of the calendar")
    return calendar.timegm((year, month, day, hour, minute, second))
