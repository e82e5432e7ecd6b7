"""Converted files against PyTorch: the cases of a part through ONNX Runtime, and how far the answers are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pywebml.errors import ConversionError, InspectionError, ToleranceError
from pywebml.inspecting import OnnxFile, drive, parse_onnx
from pywebml.prepare.parts import Case

WEB_OPSET, WEB_IR_VERSION = 26, 13
"""The newest that onnxruntime-web 1.30 loads."""
MAX_FILE_BYTES = 2**31 - 1
"""Of one file: an `.onnx` file is one protobuf message, and a browser's buffers end there too."""
MAX_TOTAL_BYTES = 2**32 - 1
"""Of all files of a session: the runtime's memory has 32-bit addresses."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a file may be from PyTorch, in any output of any case; None: does not matter.

    Attributes:
        max_abs_error: Of any number that counts.
        max_rel_error: The same, in parts of the largest number of the output.
        min_cosine: Of any row of a batch. Of an output of three dimensions, whatever its name, where positions count
            as a whole (hidden states, logits of tokens): of the mean of its vectors over the positions that count. Of
            any other: of its numbers that count, as one long vector. Outputs of one dimension have none.
    """

    max_abs_error: float | None = None
    max_rel_error: float | None = None
    min_cosine: float | None = None


@dataclass(frozen=True, slots=True)
class OutputErrors:
    """How far one output of one case is from PyTorch.

    Attributes:
        max_abs_error: Largest difference of a number that counts.
        max_rel_error: That, in parts of the largest number that counts.
        worst_cosine: See `Tolerance.min_cosine`; 1 where there are no directions to compare.
    """

    max_abs_error: float
    max_rel_error: float
    worst_cosine: float


@dataclass(frozen=True, slots=True)
class CaseErrors:
    """One case.

    Attributes:
        title: Of the case.
        shapes: Input to its shape.
        outputs: Output to its errors.
    """

    title: str
    shapes: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, OutputErrors]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All cases."""

    cases: tuple[CaseErrors, ...]

    @property
    def max_abs_error(self) -> float:
        """Of all outputs of all cases."""
        return max((errors.max_abs_error for errors in self._all()), default=0.0)

    @property
    def max_rel_error(self) -> float:
        """Of all outputs of all cases."""
        return max((errors.max_rel_error for errors in self._all()), default=0.0)

    @property
    def worst_cosine(self) -> float:
        """Of all outputs of all cases."""
        return min((errors.worst_cosine for errors in self._all()), default=1.0)

    def _all(self) -> list[OutputErrors]:
        return [errors for case in self.cases for errors in case.outputs.values()]

    def to_json(self) -> list[dict[str, Any]]:
        """Plain data."""
        return [
            {
                "title": case.title,
                "shapes": {name: list(shape) for name, shape in case.shapes.items()},
                "outputs": {name: asdict(errors) for name, errors in case.outputs.items()},
            }
            for case in self.cases
        ]

    @classmethod
    def from_json(cls, values: Sequence[Mapping[str, Any]]) -> Comparison:
        """From what `to_json` gave."""
        return cls(
            tuple(
                CaseErrors(
                    case["title"],
                    {name: tuple(shape) for name, shape in case["shapes"].items()},
                    {name: OutputErrors(**errors) for name, errors in case["outputs"].items()},
                )
                for case in values
            )
        )


def read_description(path: Path) -> OnnxFile:
    """What an `.onnx` file says of itself; its weights are not read.

    Raises:
        ConversionError: It is not readable.
    """
    try:
        with path.open("rb") as file:

            def read(begin: int, end: int) -> bytes:
                file.seek(begin)
                return file.read(end - begin)

            return drive(parse_onnx(path.stat().st_size), read)
    except InspectionError as error:
        raise ConversionError(f"{path.name} is no readable ONNX file: {error.message}") from error


def data_files(path: Path, description: OnnxFile) -> list[Path]:
    """The files of external data of an `.onnx` file, in order.

    Raises:
        ConversionError: One is missing, too short, or not beside the file.
    """
    files = []
    for name, least in description.external_data().items():
        file = path.parent / name
        if Path(name).name != name or not file.is_file() or file.stat().st_size < least:
            raise ConversionError(f"{path.name} needs {least} bytes of external data in '{name}', which is not there.")
        files.append(file)
    return files


def check_versions(path: Path, opset: int, ir_version: int) -> None:
    """Refuse versions that the web runtime would refuse.

    Args:
        path: Of the `.onnx` file, for the message.
        opset: Of the standard operators.
        ir_version: Of the file format.

    Raises:
        ConversionError: One is too new, or the opset is missing.
    """
    if not 0 < opset <= WEB_OPSET or ir_version > WEB_IR_VERSION:
        raise ConversionError(
            f"{path.name} has opset {opset} and IR version {ir_version}; the web runtime loads up to opset {WEB_OPSET} "
            f"and IR version {WEB_IR_VERSION}. Choose a lower --opset.",
            opset=opset,
            ir_version=ir_version,
        )


def check_loadable(path: Path, *, sizes: bool = True) -> OnnxFile:
    """Refuse what the web runtime would refuse.

    Args:
        path: Of the `.onnx` file.
        sizes: Whether its size, and that of its external data, must be such as a browser takes.

    Raises:
        ConversionError: Operators or file format are too new, or the files too large.
    """
    description = read_description(path)
    check_versions(path, description.opset, description.ir_version)
    all_files = [path, *data_files(path, description)]
    largest = max(all_files, key=lambda file: file.stat().st_size)
    if sizes and largest.stat().st_size > MAX_FILE_BYTES:
        raise ConversionError(
            f"{largest.name} has {largest.stat().st_size} bytes; the web runtime loads files of up to "
            f"{MAX_FILE_BYTES}. Use --external-data with a limit below that.",
            size=largest.stat().st_size,
        )
    total = sum(file.stat().st_size for file in all_files)
    if sizes and total > MAX_TOTAL_BYTES:
        raise ConversionError(
            f"{path.name} and its data have {total} bytes; the memory of the web runtime ends at {MAX_TOTAL_BYTES}. "
            "Leave this level out of --modes and take a smaller one.",
            size=total,
        )
    return description


def compare(path: Path, cases: Sequence[Case], *, threads: int = 0) -> Comparison:
    """Run a file in ONNX Runtime on the cases of its part.

    Args:
        path: Of the `.onnx` file; external data is beside it.
        cases: With PyTorch's answers.
        threads: Of the runtime; 0: as many as it likes.

    Raises:
        ConversionError: The runtime refuses the file, an output is missing, has another shape or is not finite.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    measured = []
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    # The runtime's exceptions have no common base but Exception.
    except Exception as error:
        raise ConversionError(f"ONNX Runtime cannot load the converted {path.name}: {error}") from error
    known = {output.name for output in session.get_outputs()}
    for case in cases:
        names = list(case.expected)
        if missing := [name for name in names if name not in known]:
            raise ConversionError(f"The converted {path.name} has no output {missing[0]}; it has {sorted(known)}.")
        try:
            answers = session.run(names, dict(case.feeds))
        except Exception as error:
            raise ConversionError(
                f"ONNX Runtime cannot run the converted {path.name} on '{case.title}': {error}"
            ) from error
        outputs = {}
        for name, answer in zip(names, answers, strict=True):
            expected = case.expected[name]
            where = f"The converted {path.name} answers on '{case.title}' in {name}"
            if answer.shape != expected.shape:
                raise ConversionError(f"{where} with shape {list(answer.shape)}, expected {list(expected.shape)}.")
            kept = np.broadcast_to(case.kept.get(name, np.True_), expected.shape)
            if not np.isfinite(expected[kept].astype(np.float64)).all():
                raise ConversionError(
                    f"PyTorch itself answers on '{case.title}' in {name} with numbers that are not finite. Are weights "
                    "of the checkpoint damaged, or infinite?"
                )
            if not np.isfinite(answer[kept].astype(np.float64)).all():
                raise ConversionError(f"{where} with numbers that are not finite.")
            outputs[name] = _errors(answer, expected, kept)
        shapes = {name: tuple(feed.shape) for name, feed in case.feeds.items()}
        measured.append(CaseErrors(case.title, shapes, outputs))
    return Comparison(tuple(measured))


def _errors(answer: NDArray[Any], expected: NDArray[Any], kept: NDArray[np.bool_]) -> OutputErrors:
    ours, theirs = answer.astype(np.float64), expected.astype(np.float64)
    if not kept.any():
        return OutputErrors(0.0, 0.0, 1.0)
    error = float(np.abs(ours - theirs)[kept].max())
    largest = float(np.abs(theirs[kept]).max())
    return OutputErrors(error, error / max(largest, _TINY), _worst_cosine(ours, theirs, kept))


def _worst_cosine(ours: NDArray[np.float64], theirs: NDArray[np.float64], kept: NDArray[np.bool_]) -> float:
    worst = 1.0
    if ours.ndim < 2:
        return worst
    for row in range(len(ours)):
        left, right, counts = ours[row], theirs[row], kept[row]
        if ours.ndim == 3 and not counts.all() and bool((counts == counts[:, :1]).all()):
            # Whole positions count or not: as of a sentence's embedding, their mean.
            left, right = left[counts[:, 0]].mean(axis=0), right[counts[:, 0]].mean(axis=0)
        elif ours.ndim == 3 and counts.all():
            left, right = left.mean(axis=0), right.mean(axis=0)
        else:
            left, right = left[counts], right[counts]
        if left.size < 2:
            # A single number has no direction.
            continue
        lengths = float(np.linalg.norm(left)), float(np.linalg.norm(right))
        if min(lengths) > _TINY:
            worst = min(worst, float((left * right).sum()) / (lengths[0] * lengths[1]))
        elif max(lengths) > _TINY:
            # Nothing where there should be something, or the other way round.
            worst = min(worst, 0.0)
    return worst


def require(comparison: Comparison, tolerance: Tolerance, *, part: str, dtype: str) -> None:
    """Check a measurement.

    Args:
        comparison: Of a part at a level.
        tolerance: Of that level.
        part: Its name, for the message.
        dtype: The level's name.

    Raises:
        ToleranceError: The file is too far from PyTorch. It names the worst output.
    """
    worst: tuple[float, str] | None = None
    details: dict[str, Any] = {}
    for case in comparison.cases:
        for name, errors in case.outputs.items():
            excess = _excess(errors, tolerance)
            if excess > 1 and (worst is None or excess > worst[0]):
                worst = excess, f"output {name} of '{case.title}' has {_figures(errors)}"
                details = {"case": case.title, "output": name, **asdict(errors)}
    if worst is not None:
        raise ToleranceError(
            f"The {dtype} file of {part} is too far from PyTorch: {worst[1]}; allowed: {_allowed(tolerance)}. Leave "
            f"{dtype} out of --modes, or try another --opset.",
            part=part,
            dtype=dtype,
            **details,
        )


def _excess(errors: OutputErrors, tolerance: Tolerance) -> float:
    """How many times as far as it may be; 1 is the limit."""
    excess = 0.0
    for error, limit in (
        (errors.max_abs_error, tolerance.max_abs_error),
        (errors.max_rel_error, tolerance.max_rel_error),
        (1 - errors.worst_cosine, None if tolerance.min_cosine is None else 1 - tolerance.min_cosine),
    ):
        if limit is not None and error > limit:
            excess = max(excess, error / limit if limit > 0 else math.inf)
    return excess


def _figures(errors: OutputErrors) -> str:
    return (
        f"a largest error of {errors.max_abs_error:.3g} ({errors.max_rel_error:.3g} of the largest number) and a "
        f"worst cosine of {errors.worst_cosine:.5f}"
    )


def _allowed(tolerance: Tolerance) -> str:
    words = []
    if tolerance.max_abs_error is not None:
        words.append(f"an error of {tolerance.max_abs_error:g}")
    if tolerance.max_rel_error is not None:
        words.append(f"a relative error of {tolerance.max_rel_error:g}")
    if tolerance.min_cosine is not None:
        words.append(f"a cosine of {tolerance.min_cosine} and more")
    return ", ".join(words)
