"""What is kept of a conversion that fails, and used by the next one; levels at the same time; external data.

The parts are small graphs written here, so that a conversion takes a moment; what exporters write is tested elsewhere.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from pywebml.errors import ConversionError, PrepareError, SourceError, ToleranceError
from pywebml.models.config import ModelConfig
from pywebml.models.files import model_modules
from pywebml.platform.native_locks import FileLock
from pywebml.prepare import convert as module
from pywebml.prepare import levels_job
from pywebml.prepare.compare import Tolerance
from pywebml.prepare.convert import Choices, convert
from pywebml.prepare.parts import Case, ExportedModel, Part
from pywebml.prepare.quantizing import quantize
from pywebml.prepare.source import Checkpoint, open_checkpoint
from pywebml.prepare.work import WORK
from tests.onnx_models import model_of, numbers, save, value
from tests.parity.sentencepiece_models import trained

NAME = "tests/two-parts"
MODES = ("fp32", "fp16", "q8", "q4")
WEIGHTS = {"encoder_model": numbers(64, 64, seed=1), "decoder_model_merged": numbers(64, 64, seed=2)}


class Exporter:
    """In place of PyTorch: two parts, each a product with a matrix. Notes what it is asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.broken = ""
        self.config_changes: dict[str, Any] = {}

    def __call__(self, checkpoint: Checkpoint, task: str | None, **_choices: object) -> ExportedModel:
        self.seen.append("load")
        parts = tuple(self._part(name) for name in WEIGHTS)
        return ExportedModel("two-parts", task or "text2text-generation", parts, self.config_changes)

    def _part(self, name: str) -> Part:
        def write(path: Path, opset: int) -> None:
            self.seen.append(name)
            if name == self.broken:
                path.write_bytes(b"half a fi")
                raise ConversionError(f"the exporter failed on {name}")
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
            shape: list[str | int] = ["batch_size", 64]
            save(model_of([node], [value("x", shape)], [value("y", shape)], {"w": WEIGHTS[name]}, opset), path)

        def cases() -> Sequence[Case]:
            feeds = [numbers(1, 64, seed=3), numbers(3, 64, seed=4)]
            return [Case(f"{len(x)} rows", {"x": x}, {"y": x @ WEIGHTS[name]}) for x in feeds]

        return Part(name, ("x",), ("y",), write, cases)


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Exporter:
    exporter = Exporter()
    monkeypatch.setattr("pywebml.prepare.architectures.export_model", exporter)
    return exporter


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "two-parts",  "transformers.js_config": {"dtype": "q4"}}')
    save_file(WEIGHTS, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return tmp_path / "hub"


Run = Callable[..., Path]


@pytest.fixture
def run(folder: Path, hub: Path, exporter: Exporter) -> Run:
    def run(**choices: Any) -> Path:
        exporter.seen.clear()
        chosen = Choices(**{"modes": MODES, **choices})
        return convert(open_checkpoint(folder, "a test"), hub, NAME, chosen, log=lambda _line: None)

    return run


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def levels_made(monkeypatch: pytest.MonkeyPatch, *, failing: str = "") -> list[str]:
    """Notes the levels that are made; one fails in the middle of writing."""
    made: list[str] = []
    original = quantize

    def note(source: Path, target: Path, dtype: str) -> Any:
        made.append(target.name)
        if target.name == failing:
            target.write_bytes(b"half a fi")
            raise ConversionError(f"the quantiser failed on {failing}")
        return original(source, target, dtype)

    monkeypatch.setattr(levels_job, "quantize", note)
    return made


def test_every_part_is_written_at_every_level(run: Run, hub: Path) -> None:
    target = run()

    assert left_in(target) == [
        "README.md",
        "config.json",
        "manifest.json",
        *sorted(f"onnx/{part}{suffix}.onnx" for part in WEIGHTS for suffix in ("", "_fp16", "_q4", "_quantized")),
        "report.json",
    ]
    report = json.loads((target / "report.json").read_text())
    assert [(row["part"], row["dtype"]) for row in report["files"]] == [(p, d) for p in WEIGHTS for d in MODES]
    assert report["task"] == "text2text-generation"
    # Nothing of the way there stays.
    assert [path.name for path in hub.iterdir()] == ["tests"]


def test_config_is_the_original_unless_something_has_to_be_said(run: Run, folder: Path, exporter: Exporter) -> None:
    assert (run() / "config.json").read_bytes() == (folder / "config.json").read_bytes()

    exporter.config_changes = {"is_decoder": True, "transformers.js_config": {"kv_cache_dtype": "float16"}}
    config = json.loads((run() / "config.json").read_text())
    assert config == {
        "model_type": "two-parts",
        "is_decoder": True,
        "transformers.js_config": {"dtype": "q4", "kv_cache_dtype": "float16"},
    }


def test_failed_level_leaves_the_others_for_the_next_try(
    run: Run, hub: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = levels_made(monkeypatch, failing="encoder_model_quantized.onnx")
    with pytest.raises(ConversionError, match=r"failed on encoder_model_quantized\.onnx.*kept for the next try"):
        run()
    assert not (hub / NAME).exists()
    assert len(made) == 6
    kept = left_in(hub)
    assert [path for path in kept if path.endswith("_quantized.onnx")] == [
        f"{WORK}/{Path(kept[0]).parts[1]}/onnx/decoder_model_merged_quantized.onnx"
    ]

    monkeypatch.undo()
    monkeypatch.setattr("pywebml.prepare.architectures.export_model", exporter)
    made = levels_made(monkeypatch)
    target = run()

    assert made == ["encoder_model_quantized.onnx"]
    assert exporter.seen == []
    assert len(left_in(target)) == 4 + 8
    assert [path.name for path in hub.iterdir()] == ["tests"]


def test_result_of_two_tries_is_that_of_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run()
    once = {path: (target / path).read_bytes() for path in left_in(target)}
    with monkeypatch.context() as patch:
        levels_made(patch, failing="encoder_model_q4.onnx")
        with pytest.raises(ConversionError):
            run()
    target = run()

    assert {path: (target / path).read_bytes() for path in left_in(target)} == once


def test_too_large_an_error_is_told_and_nothing_is_put_into_the_hub(run: Run, hub: Path) -> None:
    with pytest.raises(
        ToleranceError, match="The fp32 file of encoder_model is too far from PyTorch: output"
    ) as caught:
        run(tolerances={"fp32": Tolerance(max_abs_error=-1.0)}, modes=("fp32",))

    details = caught.value.details
    assert details["max_abs_error"] >= 0
    assert (details["part"], details["dtype"], details["output"]) == ("encoder_model", "fp32", "y")
    assert details["case"] in str(caught.value)
    assert not (hub / NAME).exists()


def test_several_failures_are_told_at_once(run: Run) -> None:
    impossible = Tolerance(max_abs_error=0.0)
    with pytest.raises(
        ToleranceError, match=r"The q8 file of encoder_model is .*Also failed: encoder_model_q4\.onnx, decoder_model"
    ):
        run(tolerances={"q8": impossible, "q4": impossible})


def test_failed_export_keeps_the_parts_before_it(run: Run, hub: Path, exporter: Exporter) -> None:
    exporter.broken = "decoder_model_merged"
    with pytest.raises(ConversionError, match="the exporter failed"):
        run()
    assert not any("decoder_model_merged" in path for path in left_in(hub))

    exporter.broken = ""
    run()
    assert exporter.seen == ["load", "decoder_model_merged"]


def test_of_a_model_that_fails_at_once_nothing_stays(run: Run, hub: Path, exporter: Exporter) -> None:
    exporter.broken = "encoder_model"
    with pytest.raises(ConversionError, match="the exporter failed"):
        run()
    assert not hub.exists()


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def break_a_try(run: Run, monkeypatch: pytest.MonkeyPatch, **choices: Any) -> None:
    with monkeypatch.context() as patch:
        levels_made(patch, failing="encoder_model_quantized.onnx")
        with pytest.raises(ConversionError):
            run(**choices)


@pytest.mark.parametrize(
    ("name", "harm", "exported"),
    [
        ("encoder_model_q4.onnx", damage, []),
        ("encoder_model_q4.onnx", lambda path: path.unlink(), []),
        ("encoder_model.onnx", damage, ["load", "encoder_model"]),
    ],
)
def test_kept_files_are_used_only_with_the_bytes_that_they_had(
    run: Run,
    hub: Path,
    exporter: Exporter,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    harm: Callable[[Path], None],
    exported: list[str],
) -> None:
    once = run()
    expected = (once / "onnx" / name).read_bytes()
    break_a_try(run, monkeypatch)
    (path,) = hub.glob(f"{WORK}/*/onnx/{name}")
    harm(path)

    target = run()

    assert (target / "onnx" / name).read_bytes() == expected
    assert exporter.seen == exported


def test_damaged_notes_mean_a_fresh_start(
    run: Run, hub: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_a_try(run, monkeypatch)
    (state,) = hub.glob(f"{WORK}/*/state.json")
    state.write_text("{")

    run()
    assert exporter.seen == ["load", *WEIGHTS]


@pytest.mark.parametrize("choices", [{"opset": 19}, {"task": "translation"}, {"external_data": 5000}])
def test_other_choices_do_not_use_what_is_kept(
    run: Run, exporter: Exporter, monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any]
) -> None:
    break_a_try(run, monkeypatch)
    run(**choices)
    assert exporter.seen == ["load", *WEIGHTS]


def test_other_modes_use_what_is_kept(run: Run, exporter: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    break_a_try(run, monkeypatch)
    target = run(modes=("q4", "int8"))

    assert exporter.seen == []
    assert not (target / "onnx/encoder_model.onnx").exists()
    assert (target / "onnx/encoder_model_int8.onnx").exists()


def test_changed_weights_do_not_use_what_is_kept(
    run: Run, folder: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_a_try(run, monkeypatch)
    save_file({**WEIGHTS, "more": np.ones(1)}, folder / "model.safetensors")
    run()
    assert exporter.seen == ["load", *WEIGHTS]


def test_files_that_a_second_conversion_does_not_make_again_are_named(
    run: Run, folder: Path, hub: Path, exporter: Exporter
) -> None:
    run()
    lines: list[str] = []

    for _ in range(2):
        target = convert(
            open_checkpoint(folder, "a test"), hub, NAME, Choices(modes=("fp32", "fp16", "q8")), log=lines.append
        )

    (line,) = [line for line in lines if "Replaces" in line]
    gone = "onnx/decoder_model_merged_q4.onnx, onnx/encoder_model_q4.onnx"
    assert line.endswith(f"Replaces {target}, which also had {gone}")


def test_only_one_conversion_to_a_place_at_a_time(run: Run, hub: Path) -> None:
    (hub / WORK).mkdir(parents=True)
    lock = FileLock.take(hub / WORK / "tests--two-parts--main.lock")
    assert lock is not None
    try:
        with pytest.raises(PrepareError, match="under way"):
            run()
    finally:
        lock.release()
    run()


def test_work_of_other_revisions_stays(run: Run, hub: Path) -> None:
    key = "0123456789abcdef"
    for revision in ("main", "main--2"):
        (hub / WORK / f"tests--two-parts--{revision}--{key}").mkdir(parents=True)

    run()

    assert [path.name for path in (hub / WORK).iterdir() if path.is_dir()] == [f"tests--two-parts--main--2--{key}"]


def test_file_in_the_place_of_the_revision_is_not_replaced(run: Run, hub: Path, exporter: Exporter) -> None:
    file = hub / NAME / "main"
    file.parent.mkdir(parents=True)
    file.write_text("precious")

    with pytest.raises(PrepareError, match=r"two-parts/main is a file, in the place of a folder"):
        run()

    assert exporter.seen == []
    assert file.read_text() == "precious"
    assert left_in(hub) == [f"{NAME}/main"]


def test_disk_that_cannot_be_written_is_a_named_error(run: Run, hub: Path) -> None:
    hub.write_text("a file in the way")
    with pytest.raises(PrepareError, match="Cannot write"):
        run()


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("pywebml.prepare.work.write_json", "state.json"),
        ("pywebml.prepare.convert.lay_out", "encoder_model.onnx"),
        ("pywebml.prepare.convert.save_cases", "encoder_model.npz"),
        ("pywebml.prepare.levels_job.quantize", "encoder_model_fp16.onnx"),
        ("pywebml.prepare.convert.shutil.copyfile", "main"),
        ("pywebml.prepare.convert.write_report", "main"),
        ("pywebml.prepare.convert.write_manifest", "main"),
    ],
)
def test_full_disk_is_a_named_error_wherever_it_is_noticed(
    run: Run, hub: Path, monkeypatch: pytest.MonkeyPatch, place: str, path: str
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patches:
        patches.setattr(place, full)
        with pytest.raises(PrepareError, match=rf"Cannot write .*/{path}: No space left on device\. .*free space"):
            run()
    assert not (hub / NAME).exists()
    assert run() == hub / NAME / "main"


def test_full_disk_in_the_exporter_is_a_named_error(
    run: Run, hub: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    exporter.broken = "encoder_model"
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PrepareError, match=r"Cannot write .*/encoder_model\.onnx: No space left on device"):
        run()
    assert not hub.exists()


# Processes


def test_levels_made_at_the_same_time_are_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    target = run()
    alone = {path: (target / path).read_bytes() for path in left_in(target)}
    # The processes find the package where these tests did.
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))

    target = run(jobs=2)

    assert {path: (target / path).read_bytes() for path in left_in(target)} == alone


def test_failure_in_a_process_is_the_same_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.setitem(WEIGHTS, "encoder_model", np.zeros((64, 64), np.float32))
    with pytest.raises(PrepareError):
        run(jobs=2, modes=("fp32", "q8"), tolerances={"q8": Tolerance(max_abs_error=-1.0)})


# External data


def test_external_data_is_split_and_told_in_the_configuration(run: Run) -> None:
    target = run(external_data=10_000)

    config = json.loads((target / "config.json").read_text())
    counts = config["transformers.js_config"]["use_external_data_format"]
    assert config["transformers.js_config"]["dtype"] == "q4"
    assert set(counts) <= {path.name for path in (target / "onnx").glob("*.onnx")}
    assert counts["encoder_model.onnx"] == 1
    # What our own loader would ask for is what is there.
    planned = {
        path
        for dtype in MODES
        for part in model_modules(list(WEIGHTS), dtype, ModelConfig("two-parts", config))
        for path in (part.path, *(path for _, path in part.external_data))
    }
    assert planned == {path for path in left_in(target) if path.startswith("onnx/")}
    listed = json.loads((target / "manifest.json").read_text())["files"]
    assert planned <= set(listed)
    session = onnxruntime.InferenceSession(target / "onnx/encoder_model.onnx", providers=["CPUExecutionProvider"])
    x = numbers(2, 64)
    np.testing.assert_allclose(session.run(["y"], {"x": x})[0], x @ WEIGHTS["encoder_model"], rtol=1e-4, atol=1e-4)


def test_too_many_files_of_external_data_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EXTERNAL_DATA_FILES", 0)
    with pytest.raises(ConversionError, match="files of external data; readers take up to 0"):
        run(external_data=10_000)


def test_what_is_too_large_for_one_file_is_split_unasked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pywebml.prepare.levels_job.LARGEST_FILE", 15_000)
    target = run()

    counts = json.loads((target / "config.json").read_text())["transformers.js_config"]["use_external_data_format"]
    assert counts == {"encoder_model.onnx": 1, "decoder_model_merged.onnx": 1}


# Other files


def test_files_of_tokenizer_and_processors_go_along(run: Run, folder: Path) -> None:
    names = [
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "1_Pooling/config.json",
        "modules.json",
        "LICENSE",
    ]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    for name in ("optimizer.safetensors", "training_args.bin", ".hidden", "modeling_evil.py"):
        (folder / name).write_text(name)

    target = run(modes=("q8",))

    assert {name: (target / name).read_text() for name in names} == {name: name for name in names}
    assert {path for path in left_in(target) if "/" not in path} == {
        *(name for name in names if "/" not in name),
        *("README.md", "config.json", "manifest.json", "report.json"),
    }


def test_model_of_images_needs_no_tokenizer_and_one_of_text_does(
    run: Run, hub: Path, exporter: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(modes=("q8",))
    part = exporter._part("encoder_model")
    text = Part("model", ("input_ids",), part.outputs, part.write, part.cases)
    monkeypatch.setattr(
        "pywebml.prepare.architectures.export_model",
        lambda *_args, **_choices: ExportedModel("two-parts", "fill-mask", (text,)),
    )
    with pytest.raises(SourceError, match=r"a test has no tokenizer\.json\. Save"):
        run(task="fill-mask")


@pytest.mark.parametrize(
    ("model_type", "name"),
    [("t5", "spiece.model"), ("deberta-v2", "spm.model"), ("camembert", "sentencepiece.bpe.model")],
)
def test_pieces_of_sentences_become_a_fast_tokenizer(run: Run, folder: Path, model_type: str, name: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / name).write_bytes(trained("unigram"))

    target = run(modes=("q8",))

    assert json.loads((target / "tokenizer.json").read_text())["model"]["type"] == "Unigram"


def test_characters_of_a_model_of_sounds_become_a_tokenizer(run: Run, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    (folder / "vocab.json").write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5}')

    target = run(modes=("q8",))

    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    assert tokenizer.decode([5, 5, 0, 5, 4, 4, 5], skip_special_tokens=False) == "AA A"


def test_pieces_of_marian_become_a_tokenizer(run: Run, folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "marian"}')
    (folder / "vocab.json").write_text('{"</s>": 0, "<unk>": 1, "▁": 2, "t": 3, "<pad>": 4}')
    for name in ("source.spm", "target.spm"):
        (folder / name).write_bytes(trained("unigram"))

    target = run(modes=("q8",))

    assert Tokenizer.from_file(str(target / "tokenizer.json")).encode("t").ids == [2, 3, 0]


def test_tokenizer_that_a_model_of_sounds_cannot_have_is_told(folder: Path, hub: Path, exporter: Exporter) -> None:
    (folder / "config.json").write_text('{"model_type": "wav2vec2"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}')
    (folder / "vocab.json").write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5}')
    lines: list[str] = []

    convert(open_checkpoint(folder, "a test"), hub, NAME, Choices(modes=("q8",)), log=lines.append)

    assert [line for line in lines if "no tokenizer.json, and transformers cannot make it of vocab.json" in line]


def test_process_that_is_killed_leaves_what_is_finished(folder: Path, hub: Path, tmp_path: Path) -> None:
    """A real process that dies in the middle of a level; a second one goes on."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, types\n"
        "from pathlib import Path\n"
        "from pywebml.prepare import convert as module\n"
        "from pywebml.prepare.source import open_checkpoint\n"
        "from tests.unit.test_prepare_resume import Exporter, MODES, NAME\n"
        "exporter = Exporter()\n"
        # PyTorch, which these steps do not need, takes long to import.
        "sys.modules['pywebml.prepare.architectures'] = types.SimpleNamespace(export_model=exporter)\n"
        "original = module.run_level_job\n"
        "def job(job):\n"
        "    if sys.argv[1] == 'die' and job.dtype == 'q8':\n"
        "        job.target.write_bytes(b'half')\n"
        "        os.kill(os.getpid(), 9)\n"
        "    print('made', job.target.name)\n"
        "    return original(job)\n"
        "module.run_level_job = job\n"
        f"module.convert(open_checkpoint(Path({str(folder)!r}), 'a test'), Path({str(hub)!r}), NAME,\n"
        "    module.Choices(modes=MODES), log=lambda line: None)\n"
        "print('exported', exporter.seen, 'torch' in sys.modules)\n",
        encoding="utf-8",
    )

    def start(word: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        return subprocess.run(
            [sys.executable, script, word], capture_output=True, text=True, env=environment, check=False
        )

    assert start("die").returncode == -9
    assert not (hub / NAME).exists()
    second = start("live")

    assert second.returncode == 0, second.stderr
    assert "made encoder_model_fp16.onnx" not in second.stdout
    assert "made encoder_model_quantized.onnx" in second.stdout
    assert "exported [] False" in second.stdout
    assert [path.name for path in hub.iterdir()] == ["tests"]
