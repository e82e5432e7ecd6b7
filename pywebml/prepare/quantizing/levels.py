"""The levels: which rewrites make each of them, and how far from float32 a model may be afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pywebml.prepare.quantizing.blocks import quantize_blocks
from pywebml.prepare.quantizing.bnb4 import quantize_bnb4
from pywebml.prepare.quantizing.editing import Editor
from pywebml.prepare.quantizing.integer import Integers, quantize_integers


@dataclass(frozen=True, slots=True)
class Level:
    """A dtype as Transformers.js names them.

    Attributes:
        summary: What the numbers are, in a few words.
        max_relative_error: Largest difference of an output's number from float32, over the largest magnitude in that
            output.
        min_cosine: Between an output and the one in float32, both as one long vector.
        quantize: Rewrites constants of products, filters and tables; None for levels of plain floats. The second
            argument says whether tables (embeddings) are included.
        half: Whether what stays is float16.
    """

    summary: str
    max_relative_error: float
    min_cosine: float
    quantize: Callable[[Editor, bool], None] | None = None
    half: bool = False


def _integers(integers: Integers) -> Callable[[Editor, bool], None]:
    return lambda editor, tables: quantize_integers(editor, integers, tables=tables)


def _blocks(bits: int) -> Callable[[Editor, bool], None]:
    return lambda editor, tables: quantize_blocks(editor, bits, tables=tables)


LEVELS: Mapping[str, Level] = {
    "fp32": Level("float32", 1e-5, 0.999999),
    "fp16": Level("float16, norms and angles in float32", 0.01, 0.9999, half=True),
    "q8": Level("8 bits, unsigned, a scale per channel", 0.25, 0.97, _integers(Integers(signed=False))),
    "int8": Level("7 bits, signed, a scale per channel", 0.3, 0.96, _integers(Integers(signed=True))),
    "uint8": Level("8 bits, unsigned, a scale per channel", 0.25, 0.97, _integers(Integers(signed=False))),
    "q4": Level("4 bits in blocks of 32", 0.5, 0.9, _blocks(4)),
    "q4f16": Level("4 bits in blocks of 32, the rest float16", 0.5, 0.9, _blocks(4), half=True),
    "bnb4": Level("NF4 in blocks of 64", 0.5, 0.9, lambda editor, tables: quantize_bnb4(editor, tables=tables)),
    "q2": Level("2 bits in blocks of 32", 2.0, 0.3, _blocks(2)),
    "q2f16": Level("2 bits in blocks of 32, the rest float16", 2.0, 0.3, _blocks(2), half=True),
}
"""dtype to its level."""
