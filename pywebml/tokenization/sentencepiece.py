"""SentencePiece model files (`spiece.model`, `tokenizer.model`), read without the library.

A model file is a protocol buffer. Only what a tokenizer needs is read; every length is checked against what is there.
Source: `sentencepiece_model.proto` of SentencePiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from pywebml.errors import TokenizerError

_Value: TypeAlias = int | bytes
_MOST_PIECES: Final = 1 << 22


class PieceKind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelKind(IntEnum):
    """How the pieces are used."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, slots=True)
class Piece:
    """A token: its text, its score (the logarithm of its probability, or minus its rank) and what it is."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """What a model file says.

    Attributes:
        pieces: A piece's place is its id.
        kind: How they are used.
        unk_id: The piece for what is unknown.
        byte_fallback: Whether what is unknown becomes bytes.
        charsmap: Table of replacements of the normalizer; may be empty.
        add_dummy_prefix: Whether a space is put before a text.
        remove_extra_whitespaces: Whether spaces side by side become one.
        treat_whitespace_as_suffix: Whether a space belongs to the word before it.
    """

    pieces: tuple[Piece, ...]
    kind: ModelKind
    unk_id: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    treat_whitespace_as_suffix: bool


def read_model(data: bytes, name: str) -> SentencePieceModel:
    """Read a model file.

    Args:
        data: Its bytes.
        name: Its name, for messages.

    Raises:
        TokenizerError: It is malformed.
    """
    reader = _Reader(name)
    pieces: list[Piece] = []
    trainer: dict[int, _Value] = {}
    normalizer: dict[int, _Value] = {}
    for field, value in reader.fields(data):
        if field == 1:
            pieces.append(reader.piece(value))
            if len(pieces) > _MOST_PIECES:
                raise reader.error(f"it has more than {_MOST_PIECES} pieces")
        elif field == 2:
            trainer.update(reader.fields(reader.message(value)))
        elif field == 3:
            normalizer.update(reader.fields(reader.message(value)))
    if not pieces:
        raise reader.error("it has no pieces")
    kind = reader.integer(trainer, 3, ModelKind.UNIGRAM)
    if kind not in set(ModelKind):
        raise reader.error(f"its model type {kind} is unknown")
    unknown = [index for index, piece in enumerate(pieces) if piece.kind is PieceKind.UNKNOWN]
    if not unknown:
        raise reader.error("it has no piece for what is unknown")
    charsmap = normalizer.get(2, b"")
    return SentencePieceModel(
        pieces=tuple(pieces),
        kind=ModelKind(kind),
        unk_id=unknown[0],
        byte_fallback=bool(reader.integer(trainer, 35, 0)),
        charsmap=reader.message(charsmap),
        add_dummy_prefix=bool(reader.integer(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(reader.integer(normalizer, 4, 1)),
        treat_whitespace_as_suffix=bool(reader.integer(trainer, 24, 0)),
    )


class _Reader:
    """Reads protocol buffers."""

    def __init__(self, name: str) -> None:
        self._name = name

    def error(self, problem: str) -> TokenizerError:
        return TokenizerError(
            f"{self._name} is not a usable SentencePiece model: {problem}. Download the file again.",
            place=self._name,
        )

    def fields(self, data: bytes) -> Iterator[tuple[int, _Value]]:
        """Number and value of each field: an integer, or bytes (also for numbers of fixed size)."""
        position = 0
        while position < len(data):
            key, position = self._varint(data, position)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise self.error("a field has the number 0")
            if kind == 0:
                value, position = self._varint(data, position)
                yield number, value
                continue
            if kind == 2:
                size, position = self._varint(data, position)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise self.error(f"a field is of the kind {kind}")
            if size > len(data) - position:
                raise self.error(f"a field of {size} bytes reaches beyond the end")
            yield number, data[position : position + size]
            position += size

    def _varint(self, data: bytes, position: int) -> tuple[int, int]:
        value = 0
        for index in range(10):
            if position + index >= len(data):
                raise self.error("it ends in the middle of a number")
            byte = data[position + index]
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position + index + 1
        raise self.error("a number has more than 10 bytes")

    def message(self, value: _Value) -> bytes:
        if not isinstance(value, bytes):
            raise self.error("a message is a number")
        return value

    def integer(self, fields: dict[int, _Value], number: int, default: int) -> int:
        value = fields.get(number, default)
        if not isinstance(value, int):
            raise self.error(f"the field {number} is no integer")
        return value

    def piece(self, value: _Value) -> Piece:
        fields = dict(self.fields(self.message(value)))
        text, score = fields.get(1, b""), fields.get(2, b"\0\0\0\0")
        kind = self.integer(fields, 3, PieceKind.NORMAL)
        if not isinstance(text, bytes) or not isinstance(score, bytes) or len(score) != 4:
            raise self.error("a piece is malformed")
        if kind not in set(PieceKind):
            raise self.error(f"a piece is of the kind {kind}")
        try:
            decoded = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error("a piece is not UTF-8") from error
        number: float = struct.unpack("<f", score)[0]
        if number != number or number in (float("inf"), float("-inf")):
            raise self.error("a piece's score is no number")
        return Piece(decoded, number, PieceKind(kind))
