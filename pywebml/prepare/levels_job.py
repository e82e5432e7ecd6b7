"""Making one file of one level, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pywebml.prepare import external_data
from pywebml.prepare.compare import MAX_FILE_BYTES, check_loadable, compare, data_files, read_description
from pywebml.prepare.layout import disk_errors
from pywebml.prepare.parts import Case
from pywebml.prepare.quantizing import quantize

LARGEST_FILE = 1_900_000_000
"""What is larger is split, whether external data was asked for or not."""
assert LARGEST_FILE < MAX_FILE_BYTES


@dataclass(frozen=True, slots=True)
class LevelJob:
    """What to make.

    Attributes:
        source: The float32 file.
        target: The file to write.
        dtype: Key of `LEVELS`.
        cases: The file that `save_cases` wrote.
        titles: Of the cases.
        limit: Bytes of a file of external data; None: external data only where one file would be too large.
        threads: Of ONNX Runtime; 0: as many as it likes.
    """

    source: Path
    target: Path
    dtype: str
    cases: Path
    titles: tuple[str, ...]
    limit: int | None
    threads: int


def run_level_job(job: LevelJob) -> dict[str, Any]:
    """Quantise, split and compare. What a failure leaves half-written is removed.

    Returns:
        Plain data: `nodes`, `skipped`, `notes`, `files` (names beside the target) and `cases`.

    Raises:
        ConversionError: The level cannot be made.
        PrepareError: The disk does not allow it.
    """
    with disk_errors(job.target):
        return _made(job)


def _made(job: LevelJob) -> dict[str, Any]:
    remove_file(job.target)
    try:
        quantized = quantize(job.source, job.target, job.dtype)
        files = lay_out(job.target, job.limit)
        check_loadable(job.target)
        comparison = compare(job.target, load_cases(job.cases, job.titles), threads=job.threads)
    except BaseException:
        remove_file(job.target)
        raise
    return {
        "nodes": quantized.nodes,
        "skipped": list(quantized.skipped),
        "notes": list(quantized.notes),
        "files": [file.name for file in files],
        "cases": comparison.to_json(),
    }


def lay_out(path: Path, limit: int | None) -> list[Path]:
    """Put the weights of a file into files of their own where that is wanted or needed.

    Returns:
        The `.onnx` file and those of its external data.
    """
    found = data_files(path, read_description(path))
    needs_more = any(file.stat().st_size > LARGEST_FILE for file in (path, *found))
    if limit is not None or needs_more:
        external_data.split(path, limit or external_data.DEFAULT_LIMIT)
        found = data_files(path, read_description(path))
    return [path, *found]


def remove_file(path: Path) -> None:
    """Remove an `.onnx` file and its external data."""
    path.unlink(missing_ok=True)
    for file in path.parent.glob(f"{path.name}_data*"):
        file.unlink()


def save_cases(path: Path, cases: Sequence[Case]) -> None:
    """Keep cases in a file."""
    arrays: dict[str, NDArray[Any]] = {}
    for index, case in enumerate(cases):
        for kind, values in (("feeds", case.feeds), ("expected", case.expected), ("kept", case.kept)):
            arrays |= {f"{index}|{kind}|{name}": value for name, value in values.items()}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_cases(path: Path, titles: Sequence[str]) -> list[Case]:
    """What `save_cases` kept."""
    found: list[dict[str, dict[str, NDArray[Any]]]] = [{"feeds": {}, "expected": {}, "kept": {}} for _ in titles]
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            index, kind, name = key.split("|", 2)
            found[int(index)][kind][name] = arrays[key]
    return [_case(title, values) for title, values in zip(titles, found, strict=True)]


def _case(title: str, values: Mapping[str, dict[str, NDArray[Any]]]) -> Case:
    return Case(title, values["feeds"], values["expected"], values["kept"])
