"""`pywebml convert`: a checkpoint becomes a folder of ONNX files in hub layout, or nothing does.

The steps: export every part in float32 and keep PyTorch's answers; make every level of every part from that; compare
each file; write configuration, tokenizer, report, card and manifest; put the folder into the hub. What is finished is
kept in a `WorkFolder` until then.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pywebml
from pywebml.errors import ConversionError, PrepareError, SourceError
from pywebml.models.files import DTYPE_SUFFIXES, MAX_EXTERNAL_DATA_FILES, SUBFOLDER
from pywebml.prepare.compare import Comparison, Tolerance, check_loadable, compare, require
from pywebml.prepare.layout import (
    disk_errors,
    folder_in_one_step,
    model_folder,
    require_no_file,
    sha256_of,
    write_json,
    write_manifest,
)
from pywebml.prepare.levels_job import LevelJob, lay_out, remove_file, run_level_job, save_cases
from pywebml.prepare.older_tokenizers import make_older_tokenizer
from pywebml.prepare.parts import ExportedModel, Part
from pywebml.prepare.quantizing import LEVELS, quantize
from pywebml.prepare.report import PACKAGES, ConvertedFile, write_report
from pywebml.prepare.source import CONFIG, TOKENIZER, VOCABULARIES, Checkpoint, read_json_object
from pywebml.prepare.work import WorkFolder, key_of

MIN_OPSET, MAX_OPSET = 18, 25
"""The exporter's own, and the newest that it writes: for others it needs its version converter, which is not reliable
for older ones, and gives up on newer ones unless the graph is very simple."""
DEFAULT_MODES = ("fp32", "q8")
USEFUL_MODES = tuple(dtype for dtype in LEVELS if dtype not in ("q2", "q2f16"))
"""What `--quantize` writes: few models stay within the tolerance of 2 bits."""
EXACT = "fp32"
CASES = "cases"
_TEXT_INPUTS = frozenset({"input_ids", "decoder_input_ids"})

Log = Callable[[str], None]
OnProgress = Callable[[int, int, str], None]
"""Gets the steps that are done, all steps, and what is going on."""


@dataclass(frozen=True, slots=True)
class Choices:
    """How to convert.

    Attributes:
        task: What the model is for; None: what it was trained for.
        modes: Keys of `LEVELS`.
        opset: Version of ONNX's operators.
        external_data: Put all weights into files of at most so many bytes; None: only where one file is too small.
        trust_remote_code: Run Python code that the checkpoint brings along. It can do what it wants.
        with_gqa: Also write the parts for caches shared between past and present, where the model can have one.
        jobs: Levels that are made at the same time, each in a process of its own.
        tolerances: dtype to how far it may be from PyTorch, over that of the level.
    """

    task: str | None = None
    modes: tuple[str, ...] = DEFAULT_MODES
    opset: int = MIN_OPSET
    external_data: int | None = None
    trust_remote_code: bool = False
    with_gqa: bool = True
    jobs: int = 1
    tolerances: Mapping[str, Tolerance] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `ConversionError` for what is not possible."""
        unknown = sorted(set(self.modes) - set(LEVELS))
        if unknown or not self.modes:
            raise ConversionError(
                f"Modes {', '.join(unknown) or '(none)'} cannot be written; possible: {', '.join(LEVELS)}.",
                modes=list(self.modes),
            )
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ConversionError(
                f"Opset {self.opset} is not possible: choose one from {MIN_OPSET} to {MAX_OPSET}, which the exporter "
                "writes.",
                opset=self.opset,
            )
        if self.jobs < 1:
            raise ConversionError(f"{self.jobs} jobs are not possible: give 1 or more.", jobs=self.jobs)
        if self.external_data is not None and self.external_data < 1:
            raise ConversionError(
                f"Files of {self.external_data} bytes are not possible.", external_data=self.external_data
            )

    def tolerance(self, dtype: str) -> Tolerance:
        """How far a level may be from PyTorch."""
        level = LEVELS[dtype]
        return self.tolerances.get(dtype, Tolerance(None, level.max_relative_error, level.min_cosine))


def convert(
    checkpoint: Checkpoint,
    hub: Path,
    name: str,
    choices: Choices | None = None,
    *,
    revision: str = "main",
    log: Log = print,
    on_progress: OnProgress | None = None,
) -> Path:
    """Convert a model and put it into a hub, in one step and only when every file agrees with PyTorch.

    What is good of a conversion that fails or is stopped is kept in `{hub}/.pywebml-work/` and used by the next one of
    the same checkpoint with the same choices; modes may differ.

    Args:
        checkpoint: From `open_checkpoint` or `download_checkpoint`.
        hub: Root of the hub; the files go to `{hub}/{name}/{revision}/`, replacing what is there: levels of an earlier
            conversion that are not made again are gone, and the log names them.
        name: `organisation/name`.
        choices: How to convert.
        revision: In the hub.
        log: Gets one line per step.
        on_progress: See `OnProgress`.

    Returns:
        The model's folder.

    Raises:
        ConversionError: The model cannot be converted.
        ToleranceError: A file is too far from PyTorch.
        SourceError: The checkpoint's tokenizer is not usable.
        PrepareError: The name is not allowed, the checkpoint lies in the folder that would be replaced, a file is in
            its place, another conversion to the same place is under way, or the disk failed.
    """
    choices = choices or Choices()
    choices.check()
    target = model_folder(hub, name, revision)
    # Now, since the export takes long.
    require_no_file(target)
    _require_another_place(checkpoint.folder, target)
    key = key_of(_identity(checkpoint, choices))
    with WorkFolder(hub, name, revision, key) as work:
        conversion = _Conversion(checkpoint, choices, work, log, on_progress or (lambda *_: None))
        model = conversion.export()
        files = conversion.make_levels(model)
        with folder_in_one_step(target) as folder, disk_errors(target):
            conversion.fill(folder, model, files)
            write_report(
                folder, name=name, revision=revision, model=model, checkpoint=checkpoint, choices=choices, files=files
            )
            write_manifest(folder)
            conversion.say_what_goes(target, folder)
        work.discard()
    conversion.say(f"Wrote {target}")
    return target


def _require_another_place(source: Path, target: Path) -> None:
    """What is in the target is replaced, so the checkpoint must not be there."""
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise PrepareError(
            f"The checkpoint lies in {target}, which the result would replace. Choose another --output, --name or "
            "--revision.",
            path=str(target),
        )


def _identity(checkpoint: Checkpoint, choices: Choices) -> dict[str, Any]:
    """Everything that decides over the bytes of the files, but the modes."""
    own = sorted(path for path in Path(__file__).parent.rglob("*.py"))
    sources = [checkpoint.folder / CONFIG, *checkpoint.weights()]
    sources += [checkpoint.folder / path for path in checkpoint.copied_files()]
    if choices.trust_remote_code:
        sources += sorted(checkpoint.folder.glob("*.py"))
    return {
        "sources": {path.relative_to(checkpoint.folder).as_posix(): sha256_of(path) for path in sources},
        "choices": [choices.task, choices.opset, choices.external_data, choices.trust_remote_code, choices.with_gqa],
        "versions": {package: version(package) for package in PACKAGES},
        "pywebml": [pywebml.__version__, *(sha256_of(path) for path in own)],
    }


@dataclass(frozen=True, slots=True)
class _ExportedPart:
    """What is known of a part whose float32 file is finished."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    titles: tuple[str, ...]
    comparison: Comparison
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConvertedModel:
    """What was exported: see `ExportedModel`; of the parts the names, inputs and outputs."""

    model_type: str
    task: str
    parts: tuple[_ExportedPart, ...]
    config_changes: Mapping[str, Any]


class _Conversion:
    """The steps, on one work folder."""

    def __init__(
        self, checkpoint: Checkpoint, choices: Choices, work: WorkFolder, log: Log, on_progress: OnProgress
    ) -> None:
        self._choices = choices
        self._work = work
        self._log = log
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._done = 0
        self._steps = 0
        self._onnx = work.folder / SUBFOLDER
        with disk_errors(work.folder):
            self._onnx.mkdir(exist_ok=True)
            (work.folder / CASES).mkdir(exist_ok=True)
        self._no_tokenizer = ""
        self._checkpoint = self._with_fast_tokenizer(checkpoint)

    def say(self, text: str) -> None:
        """One line."""
        self._log(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    def say_what_goes(self, target: Path, folder: Path) -> None:
        """Of a folder that is about to be replaced, the files that the new one does not have."""
        gone = sorted(_files_below(target) - _files_below(folder))
        if gone:
            self.say(f"Replaces {target}, which also had {', '.join(gone)}")

    def _begin(self, title: str) -> None:
        self._on_progress(self._done, self._steps, title)

    def _end(self, title: str) -> None:
        self._done += 1
        self._on_progress(self._done, self._steps, title)

    # Export

    @cached_property
    def _loaded(self) -> ExportedModel:
        """PyTorch's model; loaded only when something has to be exported."""
        # PyTorch takes seconds to import.
        from pywebml.prepare.architectures import export_model

        self.say(f"Loading {self._checkpoint.origin}")
        self._begin("loading")
        return export_model(
            self._checkpoint,
            self._choices.task,
            trust_remote_code=self._choices.trust_remote_code,
            with_gqa=self._choices.with_gqa,
        )

    def export(self) -> ConvertedModel:
        """Every part in float32, with its cases."""
        known = self._work.finished("model")
        if known is None:
            loaded = self._loaded
            self._check_tokenizer(loaded.parts)
            known = {
                "model_type": loaded.model_type,
                "task": loaded.task,
                "parts": [part.name for part in loaded.parts],
                "config_changes": dict(loaded.config_changes),
            }
            # Only with the first part: of a model that fails at once, nothing is kept.
        levels = [dtype for dtype in self._choices.modes if dtype != EXACT]
        self._steps = len(known["parts"]) * (1 + len(levels))
        parts = []
        for name in known["parts"]:
            finished = self._work.finished(f"part {name}")
            if finished is None:
                part = next(part for part in self._loaded.parts if part.name == name)
                finished = self._export_part(part)
                self._work.finish("model", [], known)
            else:
                self.say(f"{name}.onnx is here from an earlier try")
            self._end(name)
            parts.append(
                _ExportedPart(
                    name,
                    tuple(finished["inputs"]),
                    tuple(finished["outputs"]),
                    tuple(finished["titles"]),
                    Comparison.from_json(finished["cases"]),
                    tuple(finished["files"]),
                )
            )
            require(parts[-1].comparison, self._choices.tolerance(EXACT), part=name, dtype=EXACT)
        # PyTorch's model is no longer needed, and may be most of the memory.
        self.__dict__.pop("_loaded", None)
        return ConvertedModel(known["model_type"], known["task"], tuple(parts), known["config_changes"])

    def _export_part(self, part: Part) -> dict[str, Any]:
        path = self._onnx / f"{part.name}.onnx"
        self.say(f"Exporting {part.name} to ONNX, opset {self._choices.opset}")
        self._begin(part.name)
        try:
            with disk_errors(path):
                files = self._write_part(part, path)
            cases = part.cases()
            comparison = compare(path, cases)
        except BaseException:
            remove_file(path)
            raise
        self.say(_summary(path, files, comparison))
        kept = self._work.folder / CASES / f"{part.name}.npz"
        with disk_errors(kept):
            save_cases(kept, cases)
        values = {
            "inputs": list(part.inputs),
            "outputs": list(part.outputs),
            "titles": [case.title for case in cases],
            "files": [file.name for file in files],
            "cases": comparison.to_json(),
        }
        self._work.finish(f"part {part.name}", [*files, kept], values)
        return values

    def _write_part(self, part: Part, path: Path) -> list[Path]:
        remove_file(path)
        exported = self._work.folder / "exported" / path.name
        shutil.rmtree(exported.parent, ignore_errors=True)
        exported.parent.mkdir()
        try:
            part.write(exported, self._choices.opset)
            # Weights that the exporter wrote twice, such as tied ones, are stored once.
            quantize(exported, path, EXACT)
            files = lay_out(path, self._choices.external_data)
            check_loadable(path, sizes=EXACT in self._choices.modes)
            return files
        finally:
            shutil.rmtree(exported.parent, ignore_errors=True)

    def _check_tokenizer(self, parts: Sequence[Part]) -> None:
        """A model of text needs one; one of images or sounds may do without."""
        takes_text = any(_TEXT_INPUTS & set(part.inputs) for part in parts)
        if takes_text and not (self._checkpoint.folder / TOKENIZER).is_file():
            raise SourceError(
                f"{self._checkpoint.origin} has no {TOKENIZER}{self._no_tokenizer}. Save the tokenizer in its fast "
                "form first: AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            )
        if not takes_text and self._no_tokenizer:
            self.say(f"There will be no {TOKENIZER}{self._no_tokenizer}")
        if takes_text:
            # The cases need it, but they come after the export, which takes long.
            from pywebml.prepare.exporting.texts import load_tokenizer

            load_tokenizer(self._checkpoint.folder)

    def _with_fast_tokenizer(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with `tokenizer.json`, where transformers or we can make it of the older files."""
        older = [name for name in VOCABULARIES if (checkpoint.folder / name).is_file()]
        if TOKENIZER in older or not older:
            return checkpoint
        from transformers import AutoTokenizer

        from pywebml.prepare.quiet import quiet

        staged = self._work.folder / "checkpoint"
        with disk_errors(staged):
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir()
            for path in checkpoint.folder.iterdir():
                (staged / path.name).symlink_to(path.resolve())
        if (made := make_older_tokenizer(staged)) is not None:
            with disk_errors(staged / TOKENIZER):
                (staged / TOKENIZER).write_text(made, encoding="utf-8")
            self.say(f"Made {TOKENIZER} of {', '.join(older)}")
            return replace(checkpoint, folder=staged)
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(
                    staged, local_files_only=True, trust_remote_code=self._choices.trust_remote_code
                )
                if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
                    # Of files that it cannot use, transformers may make one that knows nothing.
                    raise ValueError("it would have no tokens but special ones")
                tokenizer.backend_tokenizer.save(str(staged / TOKENIZER))
        # Whatever transformers makes of files that it cannot use, or of packages that are missing.
        except Exception as error:
            self._no_tokenizer = f", and transformers cannot make it of {', '.join(older)}: {error}".rstrip(".")
            return checkpoint
        self.say(f"Made {TOKENIZER} of {', '.join(older)}")
        return replace(checkpoint, folder=staged)

    # Levels

    def make_levels(self, model: ConvertedModel) -> list[ConvertedFile]:
        """Every wanted file of every part, in the order of the parts and of `LEVELS`."""
        wanted = [dtype for dtype in LEVELS if dtype in self._choices.modes]
        steps = [(part, dtype) for part in model.parts for dtype in wanted if dtype != EXACT]
        made: dict[tuple[str, str], dict[str, Any]] = {}
        open_jobs: list[tuple[_ExportedPart, str]] = []
        for part, dtype in steps:
            finished = self._work.finished(f"level {part.name} {dtype}")
            if finished is None:
                open_jobs.append((part, dtype))
            else:
                self.say(f"{_file_name(part.name, dtype)} is here from an earlier try")
                self._end(part.name)
                made[part.name, dtype] = finished
        failures: dict[tuple[str, str], PrepareError] = {}
        for part, dtype, outcome in self._run_jobs(open_jobs):
            if isinstance(outcome, PrepareError):
                failures[part.name, dtype] = outcome
                self.say(f"{_file_name(part.name, dtype)} failed")
                continue
            files = [self._onnx / name for name in outcome["files"]]
            self.say(_summary(files[0], files, Comparison.from_json(outcome["cases"]), outcome["skipped"]))
            self._work.finish(f"level {part.name} {dtype}", files, outcome)
            made[part.name, dtype] = outcome
            self._end(files[0].name)
        converted = []
        for part in model.parts:
            for dtype in wanted:
                if (part.name, dtype) in failures:
                    continue
                file = self._converted(part, dtype, made.get((part.name, dtype)))
                try:
                    require(file.comparison, file.tolerance, part=part.name, dtype=dtype)
                except PrepareError as error:
                    failures[part.name, dtype] = error
                converted.append(file)
        if failures:
            raise _first_of(failures)
        return converted

    def _converted(self, part: _ExportedPart, dtype: str, made: Mapping[str, Any] | None) -> ConvertedFile:
        values: Mapping[str, Any] = made or {"files": part.files, "nodes": 0, "skipped": [], "notes": []}
        return ConvertedFile(
            part=part.name,
            dtype=dtype,
            files=tuple(f"{SUBFOLDER}/{name}" for name in values["files"]),
            tolerance=self._choices.tolerance(dtype),
            comparison=part.comparison if made is None else Comparison.from_json(made["cases"]),
            quantized_nodes=values["nodes"],
            skipped=tuple(values["skipped"]),
            notes=tuple(values["notes"]),
        )

    def _run_jobs(
        self, jobs: Sequence[tuple[_ExportedPart, str]]
    ) -> Iterator[tuple[_ExportedPart, str, dict[str, Any] | PrepareError]]:
        """The outcomes, in any order. One that fails does not keep the others from being made."""
        count = min(self._choices.jobs, len(jobs))
        threads = 0 if count <= 1 else max(1, (os.cpu_count() or 1) // count)
        described = [
            (
                part,
                dtype,
                LevelJob(
                    source=self._onnx / f"{part.name}.onnx",
                    target=self._onnx / _file_name(part.name, dtype),
                    dtype=dtype,
                    cases=self._work.folder / CASES / f"{part.name}.npz",
                    titles=part.titles,
                    limit=self._choices.external_data,
                    threads=threads,
                ),
            )
            for part, dtype in jobs
        ]
        if count <= 1:
            for part, dtype, job in described:
                self.say(f"Making {job.target.name}")
                self._begin(job.target.name)
                try:
                    yield part, dtype, run_level_job(job)
                except PrepareError as error:
                    yield part, dtype, error
            return
        # A fresh interpreter each: a forked copy of one in which PyTorch has run threads may hang.
        with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
            running: dict[Future[dict[str, Any]], tuple[_ExportedPart, str]] = {
                pool.submit(run_level_job, job): (part, dtype) for part, dtype, job in described
            }
            self.say(f"Making {len(jobs)} files, {count} at a time")
            for future in as_completed(running):
                part, dtype = running[future]
                try:
                    yield part, dtype, future.result()
                except PrepareError as error:
                    yield part, dtype, error

    # The hub's folder

    def fill(self, folder: Path, model: ConvertedModel, files: Sequence[ConvertedFile]) -> None:
        """Everything but report, card and manifest."""
        (folder / SUBFOLDER).mkdir()
        for file in files:
            for path in file.files:
                _link(self._work.folder / path, folder / path)
        for copied in self._checkpoint.copied_files():
            (folder / copied).parent.mkdir(exist_ok=True)
            shutil.copyfile(self._checkpoint.folder / copied, folder / copied)
        self._write_config(folder / CONFIG, model, files)

    def _write_config(self, target: Path, model: ConvertedModel, files: Sequence[ConvertedFile]) -> None:
        shards = {Path(file.files[0]).name: len(file.files) - 1 for file in files if len(file.files) > 1}
        if too_many := next((name for name, count in shards.items() if count > MAX_EXTERNAL_DATA_FILES), None):
            raise ConversionError(
                f"{too_many} would have {shards[too_many]} files of external data; readers take up to "
                f"{MAX_EXTERNAL_DATA_FILES}. Give --external-data a larger limit.",
                files=shards[too_many],
            )
        changes = dict(model.config_changes)
        if shards:
            section = {**changes.get("transformers.js_config", {}), "use_external_data_format": shards}
            changes["transformers.js_config"] = section
        if not changes:
            # Byte for byte, so that its hash tells where it is from.
            shutil.copyfile(self._checkpoint.folder / CONFIG, target)
            return
        config = read_json_object(self._checkpoint.folder / CONFIG)
        write_json(target, _merged(json.loads(json.dumps(config)), changes))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name: large files are not copied where the disk can do without."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _file_name(part: str, dtype: str) -> str:
    return f"{part}{DTYPE_SUFFIXES[dtype]}.onnx"


def _first_of(failures: Mapping[tuple[str, str], PrepareError]) -> PrepareError:
    """The first failure, with a word on the others and on what is kept."""
    (first, error), *others = failures.items()
    message = error.message
    if others:
        message += f" Also failed: {', '.join(_file_name(*place) for place, _ in others)}."
    message += " Nothing was put into the hub; the files that are good are kept for the next try."
    failed = type(error)(message, **{**error.details, "file": _file_name(*first)})
    failed.__cause__ = error
    return failed


def _summary(path: Path, files: Sequence[Path], comparison: Comparison, skipped: Sequence[str] = ()) -> str:
    size = sum(file.stat().st_size for file in files) / 1e6
    shards = f" in {len(files)} files" if len(files) > 1 else ""
    left_out = f"; as they were: {len(skipped)} weights" if skipped else ""
    return (
        f"{path.name}: {size:.1f} MB{shards}, against PyTorch in {len(comparison.cases)} cases: largest error "
        f"{comparison.max_abs_error:.2e} (relative {comparison.max_rel_error:.2e}), worst cosine "
        f"{comparison.worst_cosine:.6f}{left_out}"
    )
