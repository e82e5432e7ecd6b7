"""Results on their way to the page: plain data as JSON, with the arrays' bytes, and what JavaScript made, beside it.

JSON has neither arrays of numbers as bytes nor all floats, so these stand in it as an object with one key that no
result has: `{MARK: [kind, …]}`. `web/src/host/values.ts` reads them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pywebml.errors import PywebmlError
from pywebml.platform import DTYPES, Array

MARK = "\0"

# Typed arrays begin at multiples of their elements' size.
_ALIGNMENT = 8
_TYPE_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Handed:
    """A JavaScript object, such as a `Blob`, that goes to the page as it is."""

    value: Any


def encode(value: Any) -> tuple[str, bytes, list[Any]]:
    """Split a result into text, bytes and JavaScript objects.

    Args:
        value: None, bool, int, float, str, bytes, numpy scalars and arrays, `Handed`; lists, tuples and dicts of these.

    Returns:
        JSON, the bytes of all arrays, each beginning at a multiple of 8, and the objects.

    Raises:
        PywebmlError: There is something else in it.
    """
    packer = _Packer()
    try:
        text = json.dumps(value, default=packer.mark, allow_nan=False, ensure_ascii=False)
    except ValueError:
        # Only some floats are no JSON, and results seldom have them: so the common case does without this walk.
        packer = _Packer()
        text = json.dumps(_mark_floats(value), default=packer.mark, ensure_ascii=False)
    return text, bytes(packer.packed), packer.handed


class _Packer:
    def __init__(self) -> None:
        self.packed = bytearray()
        self.handed: list[Any] = []

    def mark(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {MARK: ["tensor", *self._tensor(value)]}
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, bytes | bytearray | memoryview):
            return {MARK: ["bytes", *self._add(bytes(value))]}
        if isinstance(value, Handed):
            self.handed.append(value.value)
            return {MARK: ["handed", len(self.handed) - 1]}
        raise PywebmlError(
            f"A result of type {type(value).__name__} cannot be sent to the page; give plain data or numpy arrays.",
            type=type(value).__name__,
        )

    def _tensor(self, array: Array) -> tuple[Any, ...]:
        if array.dtype.kind in "OUT":
            return "string", list(array.shape), array.astype(str).ravel().tolist()
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        kind = _TYPE_OF_DTYPE.get(native.dtype)
        if kind is None:
            raise PywebmlError(
                f"An array of dtype {array.dtype} cannot be sent to the page; use one of {', '.join(DTYPES)}.",
                dtype=str(array.dtype),
            )
        return kind, list(array.shape), *self._add(native.tobytes())

    def _add(self, data: bytes) -> tuple[int, int]:
        self.packed += bytes(-len(self.packed) % _ALIGNMENT)
        offset = len(self.packed)
        self.packed += data
        return offset, len(data)


def _mark_floats(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {MARK: ["float", str(value)]}
    if isinstance(value, np.floating):
        return _mark_floats(float(value))
    if isinstance(value, dict):
        return {key: _mark_floats(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mark_floats(item) for item in value]
    return value
