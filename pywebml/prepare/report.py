"""What a conversion did: `report.json` for programs, `README.md` as the model card for people."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import pywebml
from pywebml.prepare.compare import Comparison, OutputErrors, Tolerance, read_description
from pywebml.prepare.layout import sha256_of, write_json
from pywebml.prepare.source import CARD, Checkpoint

REPORT = "report.json"

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "safetensors", "numpy")
"""Whose versions decide over the bytes."""


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """One `.onnx` file with its external data.

    Attributes:
        part: Such as `decoder_model_merged`.
        dtype: Such as `q8`.
        files: Below the model's folder: the `.onnx` file, then its external data.
        tolerance: What was allowed.
        comparison: What was measured.
        quantized_nodes: Nodes that compute with quantised weights.
        skipped: Weights that stayed as they were, and why.
        notes: What else happened to numbers.
    """

    part: str
    dtype: str
    files: tuple[str, ...]
    tolerance: Tolerance
    comparison: Comparison
    quantized_nodes: int
    skipped: tuple[str, ...]
    notes: tuple[str, ...]

    def size(self, folder: Path) -> int:
        """Bytes of all its files."""
        return sum((folder / path).stat().st_size for path in self.files)


class Parts(Protocol):
    """What the report tells of a part."""

    @property
    def name(self) -> str:
        """Of its files."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Their names."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names."""


class Model(Protocol):
    """What the report tells of a model."""

    @property
    def model_type(self) -> str:
        """Of its configuration."""

    @property
    def task(self) -> str:
        """What it was converted for."""

    @property
    def parts(self) -> Sequence[Parts]:
        """Its modules."""


class Options(Protocol):
    """How it was converted."""

    @property
    def opset(self) -> int:
        """Version of the standard operators."""

    @property
    def external_data(self) -> int | None:
        """Limit that was asked for."""

    @property
    def with_gqa(self) -> bool:
        """Whether parts for shared caches were wanted."""

    @property
    def trust_remote_code(self) -> bool:
        """Whether code of the checkpoint was run."""


def write_report(
    folder: Path,
    *,
    name: str,
    revision: str,
    model: Model,
    checkpoint: Checkpoint,
    choices: Options,
    files: Sequence[ConvertedFile],
) -> None:
    """Write `report.json` and `README.md` into a model's folder. The same conversion writes the same bytes."""
    versions = {"pywebml": pywebml.__version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES}
    dtypes = list(dict.fromkeys(file.dtype for file in files))
    write_json(
        folder / REPORT,
        {
            "model": name,
            "revision": revision,
            "model_type": model.model_type,
            "task": model.task,
            "source": {
                "origin": checkpoint.origin,
                "license": checkpoint.licence,
                "weights": {path.name: sha256_of(path) for path in checkpoint.weights()},
                "config": sha256_of(checkpoint.folder / "config.json"),
            },
            "options": {
                "modes": dtypes,
                "opset": choices.opset,
                "external_data": choices.external_data,
                "gqa": choices.with_gqa,
                "trust_remote_code": choices.trust_remote_code,
            },
            "parts": {part.name: {"inputs": list(part.inputs), "outputs": list(part.outputs)} for part in model.parts},
            "versions": versions,
            "files": [_row(folder, file) for file in files],
        },
    )
    command = _command(name, revision, model.task, dtypes, checkpoint, choices)
    (folder / CARD).write_text(_card(folder, name, model, checkpoint, files, versions, command), encoding="utf-8")


def _command(
    name: str, revision: str, task: str, dtypes: Sequence[str], checkpoint: Checkpoint, choices: Options
) -> str:
    words = [f"--modes {' '.join(dtypes)}", f"--opset {choices.opset}"]
    if choices.external_data is not None:
        words.append(f"--external-data {choices.external_data}")
    if not choices.with_gqa:
        words.append("--no-gqa")
    if choices.trust_remote_code:
        words.append("--trust-remote-code")
    return (
        f"pywebml convert {checkpoint.arguments} --name {name} --revision {revision} --task {task} \\\n"
        f"    {' '.join(words)} --output HUB"
    )


def _card(
    folder: Path,
    name: str,
    model: Model,
    checkpoint: Checkpoint,
    files: Sequence[ConvertedFile],
    versions: Mapping[str, str],
    command: str,
) -> str:
    front = [f"license: {checkpoint.licence}"] if checkpoint.licence else []
    front += [f"pipeline_tag: {model.task}", "library_name: pywebml", "tags: [onnx]"]
    parts = [
        f"- `{part.name}`: {', '.join(f'`{name}`' for name in _few(part.inputs))} to "
        f"{', '.join(f'`{name}`' for name in _few(part.outputs))}"
        for part in model.parts
    ]
    table = [
        f"| {file.dtype} | `{file.files[0]}`{f' and {len(file.files) - 1} more' if len(file.files) > 1 else ''} "
        f"| {file.size(folder) / 1e6:.1f} MB | {file.comparison.max_abs_error:.2g} "
        f"| {file.comparison.max_rel_error:.2g} | {file.comparison.worst_cosine:.5f} |"
        for file in files
    ]
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {name}",
            "",
            f"ONNX files for the task `{model.task}`, converted by pywebml. The weights are those of the original and "
            "stay under its licence.",
            "",
            f"- Source: {checkpoint.origin}",
            f"- Licence: {checkpoint.licence or 'see the source'}",
            *parts,
            f"- Versions: {', '.join(f'{package} {number}' for package, number in versions.items())}",
            "",
            "| dtype | file | size | largest error | relative | worst cosine |",
            "|---|---|---|---|---|---|",
            *table,
            "",
            "Errors are against PyTorch in float32 on padded batches, where the mask keeps: the largest difference of "
            "any number, the same in parts of the output's largest number, and the smallest cosine of any row of a "
            "batch (of outputs with a vector per position, such as hidden states or logits of tokens: of the mean over "
            "the positions; of others: of all numbers as one vector). `report.json` has them for every case and "
            "output.",
            "",
            "```",
            command,
            "```",
            "",
        ]
    )


def _few(names: Sequence[str]) -> list[str]:
    """The names of a cache's tensors shortened to the first and the last."""
    cached = [name for name in names if name.startswith(("past_key_values.", "present."))]
    if len(cached) < 4:
        return list(names)
    return [name for name in names if name not in cached] + [cached[0], f"… {cached[-1]}"]


def _row(folder: Path, file: ConvertedFile) -> dict[str, object]:
    path, *data = file.files
    description = read_description(folder / path)
    comparison = file.comparison
    return {
        "part": file.part,
        "dtype": file.dtype,
        "path": path,
        "size": (folder / path).stat().st_size,
        "sha256": sha256_of(folder / path),
        "external_data": [
            {"path": shard, "size": (folder / shard).stat().st_size, "sha256": sha256_of(folder / shard)}
            for shard in data
        ],
        "opset": description.opset,
        "ir_version": description.ir_version,
        "quantized_nodes": file.quantized_nodes,
        "skipped": list(file.skipped),
        "notes": list(file.notes),
        **_rounded(OutputErrors(comparison.max_abs_error, comparison.max_rel_error, comparison.worst_cosine)),
        "allowed": asdict(file.tolerance),
        "cases": [
            {
                "title": case.title,
                "shapes": {name: list(shape) for name, shape in case.shapes.items()},
                "outputs": {name: _rounded(errors) for name, errors in case.outputs.items()},
            }
            for case in comparison.cases
        ],
    }


def _rounded(errors: OutputErrors) -> dict[str, Any]:
    """Without the last bits, which another processor makes different."""
    return {
        "max_abs_error": float(f"{errors.max_abs_error:.2g}"),
        "max_rel_error": float(f"{errors.max_rel_error:.2g}"),
        "worst_cosine": round(errors.worst_cosine, 5),
    }
