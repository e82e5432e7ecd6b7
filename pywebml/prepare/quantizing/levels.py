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
        min_cosine: Between an output and the one in float32, by row of the batch: see `compare.Tolerance`.
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


_ROWS = "embeddings 8 bits, a scale per row"

LEVELS: Mapping[str, Level] = {
    "fp32": Level("float32", 1e-5, 0.999999),
    "fp16": Level("float16; norms, sums and angles in float32", 0.005, 0.9999, half=True),
    "q8": Level(f"8 bits, unsigned, a scale per channel; {_ROWS}", 0.2, 0.97, _integers(Integers(signed=False))),
    "int8": Level(f"7 bits, signed, a scale per channel; {_ROWS}", 0.25, 0.96, _integers(Integers(signed=True))),
    "uint8": Level(f"8 bits, unsigned, a scale per channel; {_ROWS}", 0.2, 0.97, _integers(Integers(signed=False))),
    "q4": Level("4 bits in blocks of 32, embeddings too", 0.45, 0.9, _blocks(4)),
    "q4f16": Level("4 bits in blocks of 32, embeddings too; the rest float16", 0.45, 0.9, _blocks(4), half=True),
    "bnb4": Level(
        "NF4 in blocks of 64; embeddings 4 bits in blocks of 32",
        0.45,
        0.9,
        lambda editor, tables: quantize_bnb4(editor, tables=tables),
    ),
    "q2": Level("2 bits in blocks of 32, embeddings too", 1.5, 0.5, _blocks(2)),
    "q2f16": Level("2 bits in blocks of 32, embeddings too; the rest float16", 1.5, 0.5, _blocks(2), half=True),
}
"""dtype to its level.

The tolerances leave room above what was measured on 2026-11-26: the largest relative error over 98 sentences and the
cosine over 8 of them for all-MiniLM-L6-v2 (q2: both over 8), and the worst of tiny random models (BERT, GPT-2, Llama,
ResNet, ViT; the float16 levels without ViT):

    level       all-MiniLM-L6-v2    tiny random models
    fp16        0.0008  1.00000     0.0003  1.00000
    q8, uint8   0.092   0.9908      0.013   0.9999
    int8        0.103   0.9895      0.023   0.9997
    q4, q4f16   0.151   0.9699      0.224   0.974
    bnb4        0.131   0.9698      0.124   0.989
    q2, q2f16   0.405   0.624       0.682   0.650

There is no `q1`: the web runtime's MatMulNBits has 2, 4 and 8 bits.
"""
