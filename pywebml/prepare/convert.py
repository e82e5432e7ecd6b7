"""`pywebml convert`: a checkpoint becomes a folder of ONNX files in hub layout, or nothing does."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pywebml.errors import ConversionError
from pywebml.models.files import DTYPE_SUFFIXES, SUBFOLDER
from pywebml.prepare.compare import Comparison, Tolerance, compare, reference_batches, require
from pywebml.prepare.export import MAX_OPSET, MIN_OPSET, export_encoder, load_encoder
from pywebml.prepare.layout import folder_in_one_step, model_folder, write_manifest
from pywebml.prepare.quantize import quantize_q8
from pywebml.prepare.report import ConvertedFile, write_report
from pywebml.prepare.source import COPIED_FILES, Checkpoint

TASKS = ("feature-extraction",)
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(max_abs_error=1e-4, min_cosine=0.99999),
    "q8": Tolerance(max_abs_error=None, min_cosine=0.98),
}
"""dtype that can be written, to how far it may be from PyTorch."""


def convert(
    checkpoint: Checkpoint,
    hub: Path,
    name: str,
    *,
    revision: str = "main",
    task: str = "feature-extraction",
    modes: Sequence[str] = ("fp32", "q8"),
    opset: int = MIN_OPSET,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    log: Callable[[str], None] = print,
) -> Path:
    """Convert an encoder and put it into a hub, in one step and only when every file agrees with PyTorch.

    Args:
        checkpoint: From `open_checkpoint` or `download_checkpoint`.
        hub: Root of the hub; the files go to `{hub}/{name}/{revision}/`, replacing what is there.
        name: `organisation/name`.
        revision: In the hub.
        task: `feature-extraction`.
        modes: Keys of `TOLERANCES`.
        opset: Version of ONNX's operators.
        tolerances: How far each dtype may be from PyTorch.
        log: Gets one line per step.

    Returns:
        The model's folder.

    Raises:
        ConversionError: The model cannot be converted.
        ToleranceError: A file is too far from PyTorch.
        SourceError: The checkpoint's tokenizer is not usable.
        PrepareError: The name is not allowed, or the disk failed.
    """
    _check_choices(task, modes, opset)
    target = model_folder(hub, name, revision)
    started = time.monotonic()

    def say(text: str) -> None:
        log(f"[{time.monotonic() - started:5.1f} s] {text}")

    say(f"Loading {checkpoint.origin}")
    encoder = load_encoder(checkpoint)
    with folder_in_one_step(target) as folder:
        (folder / SUBFOLDER).mkdir()
        exact = folder / _path("fp32")
        say(f"Exporting to ONNX, opset {opset}")
        export_encoder(encoder, exact, opset)
        say("Running PyTorch for reference")
        batches = reference_batches(encoder, checkpoint)

        files = []
        # fp32 first: the other modes are made from it.
        for dtype in sorted(modes, key=list(TOLERANCES).index):
            quantized_nodes = 0
            if dtype == "q8":
                say("Quantising to 8 bits")
                quantized_nodes = quantize_q8(exact, folder / _path(dtype))
            comparison = compare(folder / _path(dtype), batches)
            say(_summary(folder / _path(dtype), comparison))
            require(comparison, tolerances[dtype], dtype)
            files.append(ConvertedFile(dtype, _path(dtype), tolerances[dtype], comparison, quantized_nodes))
        if "fp32" not in modes:
            exact.unlink()

        for file_name in COPIED_FILES:
            if (checkpoint.folder / file_name).is_file():
                shutil.copyfile(checkpoint.folder / file_name, folder / file_name)
        write_report(
            folder,
            name=name,
            revision=revision,
            task=task,
            input_names=encoder.input_names,
            checkpoint=checkpoint,
            files=files,
        )
        write_manifest(folder)
    say(f"Wrote {target}")
    return target


def _path(dtype: str) -> str:
    return f"{SUBFOLDER}/model{DTYPE_SUFFIXES[dtype]}.onnx"


def _check_choices(task: str, modes: Sequence[str], opset: int) -> None:
    if task not in TASKS:
        raise ConversionError(f"Task '{task}' cannot be converted for; possible: {', '.join(TASKS)}.", task=task)
    unknown = sorted(set(modes) - set(TOLERANCES))
    if unknown or not modes:
        raise ConversionError(
            f"Modes {', '.join(unknown) or '(none)'} cannot be written; possible: {', '.join(TOLERANCES)}.",
            modes=list(modes),
        )
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise ConversionError(
            f"Opset {opset} is not possible: choose one from {MIN_OPSET} to {MAX_OPSET}, which the exporter writes "
            "and the web runtime loads.",
            opset=opset,
        )


def _summary(path: Path, comparison: Comparison) -> str:
    shapes = ", ".join(f"{batch}×{sequence}" for batch, sequence in comparison.shapes)
    return (
        f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, against PyTorch on batches {shapes}: largest error "
        f"{comparison.max_abs_error:.2e}, worst cosine {comparison.worst_cosine:.6f}"
    )
