"""The header of a safetensors file: eight bytes of length, JSON, then the tensors' bytes without gaps.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pywebml.errors import InspectionError
from pywebml.inspecting.window import Parser, Window

MAX_HEADER_BYTES = 32 * 1024 * 1024
"""The format allows 100 MB; the largest models have headers of a few megabytes."""
MAX_DIMENSIONS = 64

BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
"""dtype to the bits of one number."""


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """One tensor.

    Attributes:
        name: In the file.
        dtype: As the file says, such as `F32`.
        shape: Its dimensions.
        size: In bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def parameters(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """What a header says.

    Attributes:
        size: Of the file, in bytes.
        header_size: Of the header, in bytes, its length included.
        tensors: In the order of their bytes.
        metadata: Free words of whoever wrote the file.
    """

    size: int
    header_size: int
    tensors: tuple[SafetensorsTensor, ...]
    metadata: Mapping[str, str]

    @property
    def parameters(self) -> int:
        """How many numbers all tensors have."""
        return sum(tensor.parameters for tensor in self.tensors)


def looks_like_safetensors(begin: bytes, size: int) -> bool:
    """Whether a file of this size that begins with these bytes may be one."""
    return len(begin) >= 9 and begin[8:9] == b"{" and 2 <= int.from_bytes(begin[:8], "little") <= size - 8


def parse_safetensors(size: int) -> Parser[SafetensorsFile]:
    """Read a header, with two requests at most; the tensors' bytes are not read.

    Args:
        size: Of the file.

    Raises:
        InspectionError: The header breaks the format, or the file is not as long as the header says.
    """
    window = Window(size)
    length = int.from_bytes((yield from window.need(0, 8)), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise InspectionError(
            f"The header claims {length} bytes; possible are 2 to {MAX_HEADER_BYTES}. This is no safetensors file.",
            size=length,
        )
    header = _parse_json((yield from window.need(8, 8 + length)))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InspectionError("__metadata__ in the header is not an object of texts.")
    tensors = sorted((_tensor(name, entry) for name, entry in header.items()), key=lambda pair: (pair[0], pair[1].size))
    expected = 0
    for begin, tensor in tensors:
        if begin != expected:
            raise InspectionError(
                f"The bytes of '{_short(tensor.name)}' begin at {begin}, where {expected} was expected: tensors must "
                "neither overlap nor leave gaps.",
                offset=begin,
            )
        expected = begin + tensor.size
    if 8 + length + expected != size:
        raise InspectionError(
            f"The header describes a file of {8 + length + expected} bytes, but it has {size}. Is it cut off?",
            size=size,
            expected=8 + length + expected,
        )
    return SafetensorsFile(size, 8 + length, tuple(tensor for _, tensor in tensors), metadata)


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        # A name that comes twice would be read differently by different programs.
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_doubles)
    # Too deep nesting is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise InspectionError(f"The header is not JSON: {' '.join(str(error).split())[:200]}.") from error
    if not isinstance(value, dict):
        raise InspectionError(f"The header is JSON of the kind {type(value).__name__}, expected an object.")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name comes twice")
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _tensor(name: str, entry: object) -> tuple[int, SafetensorsTensor]:
    """Where a tensor's bytes begin, and what it is."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise InspectionError(f"'{_short(name)}' in the header lacks or has more than dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InspectionError(f"'{_short(name)}' has the dtype {_short(str(dtype))}; known are {', '.join(BITS)}.")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_count, shape)):
        raise InspectionError(f"'{_short(name)}' has a shape that is no list of up to {MAX_DIMENSIONS} sizes.")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InspectionError(f"'{_short(name)}' has data_offsets that are not two positions.")
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise InspectionError(
            f"'{_short(name)}' has {end - begin} bytes, but its shape {shape} takes {bits} bits as {dtype}.",
            offset=begin,
        )
    return begin, SafetensorsTensor(name, dtype, tuple(shape), end - begin)


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:100]}…"
