"""Levels (until the branch with all of them is merged)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pywebml.prepare.compare import Tolerance
from pywebml.prepare.quantize import quantize_q8


@dataclass(frozen=True, slots=True)
class Level:
    """One level."""

    tolerance: Tolerance


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was done."""

    nodes: int
    skipped: tuple[str, ...]


LEVELS: Mapping[str, Level] = {
    "fp32": Level(Tolerance(max_rel_error=1e-5)),
    "q8": Level(Tolerance(min_cosine=0.98)),
}


def quantize(source: Path, target: Path, dtype: str) -> Quantized:
    """Write a level."""
    return Quantized(quantize_q8(source, target), ())
