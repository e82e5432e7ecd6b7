"""The protobuf wire format as far as ONNX files need it: tensors are found, cut out and put in without being parsed.

Field numbers are those of `onnx.proto`. Only messages on the way to a tensor are entered; all other bytes are copied
as they are, also fields that this version does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from pywebml.errors import SourceError

MAX_DEPTH = 64
"""Graphs inside graphs; protobuf itself ends at 100 messages inside each other."""

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5


class Kind(Enum):
    """Messages on the way to a tensor."""

    MODEL = auto()
    GRAPH = auto()
    NODE = auto()
    ATTRIBUTE = auto()
    FUNCTION = auto()
    TENSOR = auto()


CHILDREN: Mapping[Kind, Mapping[int, Kind]] = {
    Kind.MODEL: {7: Kind.GRAPH, 25: Kind.FUNCTION},
    Kind.GRAPH: {1: Kind.NODE, 5: Kind.TENSOR},
    Kind.NODE: {5: Kind.ATTRIBUTE},
    Kind.ATTRIBUTE: {5: Kind.TENSOR, 6: Kind.GRAPH, 10: Kind.TENSOR, 11: Kind.GRAPH},
    Kind.FUNCTION: {7: Kind.NODE},
}
"""Kind of a message to the fields that hold messages to enter."""


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that stay where they are until they are written.

    Attributes:
        source: Number of the file.
        offset: In bytes.
        length: In bytes.
    """

    source: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    Attributes:
        number: As in `onnx.proto`.
        wire_type: `VARINT`, `FIXED64`, `DELIMITED` or `FIXED32`.
        start: Where the field begins.
        value: Where its value begins, behind tag and length.
        end: Where it ends.
        integer: Of a `VARINT`.
    """

    number: int
    wire_type: int
    start: int
    value: int
    end: int
    integer: int = 0


Pieces = list[bytes | Span]
Tensor = Callable[[memoryview, int, int], Pieces]
"""Gets a message and the range of a tensor in it; returns what stands there instead, without tag and length."""


def fields(message: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of a message, in their order.

    Raises:
        SourceError: The bytes are no protobuf message.
    """
    at = start
    while at < end:
        begin = at
        tag, at = _varint(message, at, end)
        number, wire_type = tag >> 3, tag & 7
        integer = 0
        value = at
        if wire_type == VARINT:
            integer, at = _varint(message, at, end)
        elif wire_type == DELIMITED:
            length, value = _varint(message, at, end)
            at = value + length
        elif wire_type in (FIXED32, FIXED64):
            at += 4 if wire_type == FIXED32 else 8
        else:
            raise SourceError(f"This is no ONNX file: wire type {wire_type} at byte {begin}.", offset=begin)
        if at > end or not 0 < number < 1 << 29:
            raise SourceError(
                f"This is no ONNX file, or it is cut off: the field at byte {begin} reaches beyond its message.",
                offset=begin,
            )
        yield Field(number, wire_type, begin, value, at, integer)


def rewrite(message: memoryview, tensor: Tensor, kind: Kind = Kind.MODEL) -> Pieces:
    """A message with every tensor in it replaced by what `tensor` gives.

    Raises:
        SourceError: The bytes are no protobuf message, or graphs lie too deep inside each other.
    """
    return _joined(_rewrite(message, 0, len(message), kind, tensor, 0))


def size_of(pieces: Pieces) -> int:
    """In bytes."""
    return sum(piece.length if isinstance(piece, Span) else len(piece) for piece in pieces)


def delimited(number: int, pieces: Pieces) -> Pieces:
    """A field that holds bytes or a message."""
    return [varint(number << 3 | DELIMITED) + varint(size_of(pieces)), *pieces]


def varint(value: int) -> bytes:
    """A number that is not negative."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _rewrite(message: memoryview, start: int, end: int, kind: Kind, tensor: Tensor, depth: int) -> Pieces:
    if depth > 3 * MAX_DEPTH:
        raise SourceError(f"The graphs of this model lie more than {MAX_DEPTH} deep inside each other.")
    children = CHILDREN[kind]
    pieces: Pieces = []
    copied = start
    for field in fields(message, start, end):
        child = children.get(field.number)
        if child is None or field.wire_type != DELIMITED:
            continue
        if child is Kind.TENSOR:
            inner = tensor(message, field.value, field.end)
        else:
            inner = _rewrite(message, field.value, field.end, child, tensor, depth + 1)
        pieces.append(bytes(message[copied : field.start]))
        pieces += delimited(field.number, inner)
        copied = field.end
    pieces.append(bytes(message[copied:end]))
    return pieces


def _joined(pieces: Pieces) -> Pieces:
    """The same with neighbours of bytes as one."""
    joined: Pieces = []
    run: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            run.append(piece)
            continue
        joined += [b"".join(run), piece]
        run = []
    joined.append(b"".join(run))
    return joined


def _varint(message: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise SourceError(f"This is no ONNX file, or it is cut off: no whole number before byte {at}.", offset=at)
