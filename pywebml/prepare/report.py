"""What a conversion did: `report.json` for programs, `README.md` as the model card for people."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx

import pywebml
from pywebml.prepare.compare import Comparison, Tolerance
from pywebml.prepare.export import OUTPUT, opset_of
from pywebml.prepare.layout import sha256_of, write_json
from pywebml.prepare.source import CARD, Checkpoint

REPORT = "report.json"

_PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True, slots=True)
class ConvertedFile:
    """One `.onnx` file.

    Attributes:
        dtype: Such as `q8`.
        path: Below the model's folder.
        tolerance: What was allowed.
        comparison: What was measured.
        quantized_nodes: Nodes that compute with quantised weights.
    """

    dtype: str
    path: str
    tolerance: Tolerance
    comparison: Comparison
    quantized_nodes: int


def write_report(
    folder: Path,
    *,
    name: str,
    revision: str,
    task: str,
    input_names: Sequence[str],
    checkpoint: Checkpoint,
    files: Sequence[ConvertedFile],
) -> None:
    """Write `report.json` and `README.md` into a model's folder. The same conversion writes the same bytes."""
    versions = {"pywebml": pywebml.__version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in _PACKAGES}
    rows = [_row(folder, file) for file in files]
    weights = sorted(checkpoint.folder.glob("*.safetensors"))
    write_json(
        folder / REPORT,
        {
            "model": name,
            "revision": revision,
            "task": task,
            "source": {
                "origin": checkpoint.origin,
                "license": checkpoint.licence,
                "weights": {path.name: sha256_of(path) for path in weights},
            },
            "inputs": list(input_names),
            "outputs": [OUTPUT],
            "versions": versions,
            "files": rows,
        },
    )
    dtypes = " ".join(file.dtype for file in files)
    opset = rows[0]["opset"]
    table = "\n".join(
        f"| {file.dtype} | `{file.path}` | {(folder / file.path).stat().st_size / 1e6:.1f} MB "
        f"| {file.comparison.max_abs_error:.2g} | {file.comparison.worst_cosine:.5f} |"
        for file in files
    )
    front = [f"license: {checkpoint.licence}"] if checkpoint.licence else []
    front += [f"pipeline_tag: {task}", "library_name: pywebml", "tags: [onnx]"]
    (folder / CARD).write_text(
        "\n".join(
            [
                "---",
                *front,
                "---",
                "",
                f"# {name}",
                "",
                f"ONNX files for the task `{task}`, converted by pywebml. The weights are those of the original and "
                "stay under its licence.",
                "",
                f"- Source: {checkpoint.origin}",
                f"- Licence: {checkpoint.licence or 'see the source'}",
                f"- Inputs: {', '.join(f'`{input_name}`' for input_name in input_names)}; output: `{OUTPUT}`",
                f"- Versions: {', '.join(f'{package} {number}' for package, number in versions.items())}",
                "",
                "| dtype | file | size | largest error | worst cosine |",
                "|---|---|---|---|---|",
                table,
                "",
                "Errors are against PyTorch in float32 on padded batches: the largest difference of any number at a "
                "position that the attention mask keeps, and the smallest cosine between mean-pooled embeddings.",
                "",
                "```",
                f"pywebml convert --path CHECKPOINT --name {name} --revision {revision} --task {task} \\",
                f"    --modes {dtypes} --opset {opset} --output HUB",
                "```",
                "",
            ]
        ),
        encoding="utf-8",
    )


def _row(folder: Path, file: ConvertedFile) -> dict[str, object]:
    path = folder / file.path
    model = onnx.load(path)
    return {
        "dtype": file.dtype,
        "path": file.path,
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "opset": opset_of(model),
        "ir_version": model.ir_version,
        "quantized_nodes": file.quantized_nodes,
        # Rounded, so that the last bits of another processor do not change the file.
        "max_abs_error": float(f"{file.comparison.max_abs_error:.2g}"),
        "worst_cosine": round(file.comparison.worst_cosine, 5),
        "allowed": {
            "max_abs_error": file.tolerance.max_abs_error,
            "min_cosine": file.tolerance.min_cosine,
        },
        "compared_shapes": [list(shape) for shape in file.comparison.shapes],
    }
