"""The command line: words, exit statuses and messages. What `convert` does is tested with the conversion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pywebml
from pywebml.cli import main
from pywebml.convert_cli import progress
from pywebml.errors import SourceError
from pywebml.prepare.convert import Choices
from pywebml.prepare.quantizing import LEVELS
from tests.tiny_model import TinyModel


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What `convert` was called with, in place of converting."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def record(*positional: Any, **named: Any) -> Path:
        assert callable(named.pop("log"))
        assert callable(named.pop("on_progress"))
        seen.append((positional, named))
        return Path()

    monkeypatch.setattr("pywebml.prepare.convert.convert", record)
    monkeypatch.setattr("pywebml.prepare.source.open_checkpoint", lambda folder, origin: (folder, origin))
    monkeypatch.setattr(
        "pywebml.prepare.source.download_checkpoint",
        lambda model_id, revision, *, trust_remote_code: (model_id, revision, trust_remote_code),
    )
    return seen


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pywebml {pywebml.__version__}\n"


def test_convert_takes_a_repository_under_its_own_name(calls: list[Any]) -> None:
    assert main(["convert", "--model-id", "org/name", "--source-revision", "abc", "--output", "hub"]) == 0

    (positional, named) = calls[0]
    assert positional == (("org/name", "abc", False), Path("hub"), "org/name", Choices())
    assert named == {"revision": "main"}


def test_convert_takes_a_folder_and_tells_nobody_its_path(calls: list[Any], tmp_path: Path) -> None:
    words = ["--revision", "v1.0.0", "--modes", "q8", "--opset", "20", "--name", "org/other", "--output", "hub"]
    assert main(["convert", "--path", str(tmp_path / "tiny"), *words]) == 0

    (positional, named) = calls[0]
    chosen = Choices(modes=("q8",), opset=20)
    assert positional == ((tmp_path / "tiny", "local folder 'tiny'"), Path("hub"), "org/other", chosen)
    assert named == {"revision": "v1.0.0"}


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ((), Choices(modes=("fp32", "q8"), opset=18)),
        (("--quantize",), Choices(modes=("fp32", "fp16", "q8", "int8", "uint8", "q4", "q4f16", "bnb4"))),
        (("--modes", "q4", "bnb4"), Choices(modes=("q4", "bnb4"))),
        (("--task", "fill-mask"), Choices(task="fill-mask")),
        (("--external-data",), Choices(external_data=10**9)),
        (("--external-data", "500MB"), Choices(external_data=500_000_000)),
        (("--external-data", "1.5 GB"), Choices(external_data=1_500_000_000)),
        (("--external-data", "64MiB"), Choices(external_data=64 << 20)),
        (("--external-data", "12345"), Choices(external_data=12345)),
        (("--jobs", "3"), Choices(jobs=3)),
        (("--no-gqa",), Choices(with_gqa=False)),
        (("--trust-remote-code",), Choices(trust_remote_code=True)),
    ],
)
def test_convert_hands_on_its_choices(calls: list[Any], words: tuple[str, ...], choices: Choices) -> None:
    assert main(["convert", "--model-id", "org/name", "--output", "hub", *words]) == 0

    (positional, _) = calls[0]
    assert positional[3] == choices
    assert positional[0] == ("org/name", "main", choices.trust_remote_code)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--external-data", "much"), "'much' is no size"),
        (("--external-data", "0"), "'0' is no size"),
        (("--external-data", "-5MB"), "'-5MB' is no size"),
        (("--external-data", "9" * 30), "is no size"),
        (("--modes", "q3"), "Modes q3 cannot be written"),
        (("--opset", "30"), "Opset 30 is not possible"),
        (("--jobs", "0"), "0 jobs are not possible"),
        (("--name", "../other"), "'../other' cannot be a model's name"),
        (("--name", ""), "'' cannot be a model's name"),
        (("--revision", "../other"), "'../other' cannot be a revision"),
    ],
)
def test_choices_that_are_not_possible_are_refused_before_anything_is_taken(
    calls: list[Any], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    # With `=`, since a word that begins with a dash would be taken for an option.
    joined = [f"{words[0]}={words[1]}"] if words[0] != "--modes" else list(words)
    assert main(["convert", "--model-id", "org/name", "--output", "hub", *joined]) == 1

    output = capsys.readouterr()
    assert message in output.err
    assert "Taking" not in output.out
    assert calls == []


def test_lines_are_lines_and_on_a_terminal_there_is_a_bar_below_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress() as (log, on_progress):
        on_progress(1, 4, "model_q4.onnx")
        log("a line")
    assert capsys.readouterr() == ("a line\n", "")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress() as (log, on_progress):
        on_progress(1, 4, "model_q4.onnx")
        log("a line")
    output = capsys.readouterr()
    assert "a line\n" in output.out
    assert "model_q4.onnx: 1/4" in output.err


def test_error_of_the_package_is_one_line_and_exit_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--path", str(tmp_path / "none"), "--output", str(tmp_path / "hub")]) == 1

    output = capsys.readouterr()
    assert output.err.startswith(f"pywebml: {SourceError.__name__}: There is no folder")
    assert output.err.count("\n") == 1
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["bake"],
        ["convert", "--output", "hub"],
        ["convert", "--model-id", "a/b"],
        ["convert", "--model-id", "a/b", "--path", "c", "--output", "hub"],
        ["convert", "--model-id", "a/b", "--output", "hub", "--opset", "new"],
        ["convert", "--model-id", "a/b", "--output", "hub", "--quantize", "--modes", "q8"],
        ["inspect"],
    ],
)
def test_wrong_words_end_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_source_revision_without_a_repository_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--path", "tiny", "--source-revision", "main", "--output", "hub"]) == 1
    assert "--source-revision belongs to --model-id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra", "words"),
    [
        ("onnx", "convert", ["convert", "--path", "tiny", "--output", "hub"]),
        ("cryptography", "native", ["settings", "init", "tiny", "--root-days", "5"]),
        ("httpx", "native", ["models", "list"]),
        ("httpx", "native", ["inspect", "https://hub.example/model.onnx"]),
    ],
)
def test_missing_extra_says_what_to_install(package: str, extra: str, words: list[str]) -> None:
    # An entry of None makes the import fail as if the package were not installed.
    code = f"import sys; sys.modules['{package}'] = None; from pywebml.cli import main; sys.exit(main(sys.argv[1:]))"

    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    assert result.returncode == 1
    assert f"'{package}'" in result.stderr
    assert f'pip install "pywebml[{extra}]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_readme_has_the_levels_and_their_tolerances() -> None:
    readme = Path("README.md").read_text(encoding="utf-8")
    for dtype, level in LEVELS.items():
        row = f"| `{dtype}` | {level.summary} | {level.max_relative_error:g} | {level.min_cosine:g} |\n"
        assert row in readme, f"README.md lacks: {row}"


def test_looking_into_files_needs_nothing_that_converting_needs(tmp_path: Path) -> None:
    TinyModel().write(tmp_path)
    blocked = ("torch", "transformers", "onnx", "huggingface_hub", "safetensors", "google.protobuf", "onnxruntime")
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); from pywebml.cli import main; sys.exit(main())"

    words = ["inspect", str(tmp_path / "onnx/model.onnx")]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert "last_hidden_state" in result.stdout


def test_importing_the_command_line_is_light() -> None:
    heavy = "{'torch', 'tqdm', 'transformers', 'onnx', 'huggingface_hub', 'tokenizers', 'httpx', 'onnxruntime'}"
    code = f"import sys, pywebml.cli; print(sorted({heavy} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
