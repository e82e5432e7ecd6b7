"""The command line: words, exit statuses and messages. What `convert` does is tested with the conversion."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pywebml
from pywebml.cli import main
from pywebml.errors import SourceError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What `convert` was called with, in place of converting."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def record(*positional: Any, **named: Any) -> Path:
        named.pop("log")
        seen.append((positional, named))
        return Path()

    monkeypatch.setattr("pywebml.prepare.convert.convert", record)
    monkeypatch.setattr("pywebml.prepare.source.open_checkpoint", lambda folder, origin: (folder, origin))
    monkeypatch.setattr("pywebml.prepare.source.download_checkpoint", lambda model_id, revision: (model_id, revision))
    return seen


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == f"pywebml {pywebml.__version__}\n"


def test_convert_takes_a_repository_under_its_own_name(calls: list[Any]) -> None:
    assert main(["convert", "--model-id", "org/name", "--source-revision", "abc", "--output", "hub"]) == 0

    (positional, named) = calls[0]
    assert positional == (("org/name", "abc"), Path("hub"), "org/name")
    assert named == {"revision": "main", "task": "feature-extraction", "modes": ["fp32", "q8"], "opset": 18}


def test_convert_takes_a_folder_and_tells_nobody_its_path(calls: list[Any], tmp_path: Path) -> None:
    words = ["--revision", "v1.0.0", "--modes", "q8", "--opset", "20", "--name", "org/other", "--output", "hub"]
    assert main(["convert", "--path", str(tmp_path / "tiny"), *words]) == 0

    (positional, named) = calls[0]
    assert positional == ((tmp_path / "tiny", "local folder 'tiny'"), Path("hub"), "org/other")
    assert named == {"revision": "v1.0.0", "task": "feature-extraction", "modes": ["q8"], "opset": 20}


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


def test_importing_the_command_line_is_light() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'huggingface_hub', 'tokenizers', 'httpx', 'onnxruntime'}"
    code = f"import sys, pywebml.cli; print(sorted({heavy} & set(sys.modules)))"

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert result.stdout.strip() == "[]"
