"""`pywebml models`: what it prints, what it changes in the store, and how it refuses."""

from __future__ import annotations

import asyncio
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pywebml import models_cli, options
from pywebml.cli import main
from pywebml.models_cli import ProgressLine
from pywebml.options import Configuration
from pywebml.platform import set_platform
from pywebml.progress import ProgressEvent
from tests.faults.server import FaultServer
from tests.tiny_model import FILES, TinyModel

MODEL, REVISION = "tests/tiny", "v1.0.0"
FOLDER = f"hub/{MODEL}/{REVISION}"
TOKEN = "hf_s3cr3t"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYWEBML_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(options, "_configuration", Configuration())
    yield
    set_platform(None)


class Terminal:
    """Runs commands and gives what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str], server: FaultServer) -> None:
        self._capsys = capsys
        self.hub = ("--hub-root-url", f"{server.url}/hub/")
        self.status = 0
        self.errors = ""

    def __call__(self, *words: object) -> str:
        set_platform(None)
        self.status = main(["models", *map(str, words)])
        printed = self._capsys.readouterr()
        self.errors = printed.err
        return printed.out

    def refuses(self, *words: object) -> str:
        """The one line of an error."""
        self(*words)
        assert self.status == 1
        assert self.errors.startswith("pywebml: ")
        assert self.errors.count("\n") == 1
        return self.errors

    def prefetch(self, *words: object) -> str:
        return self("prefetch", MODEL, "--revision", REVISION, "--dtype", "fp32", *words, *self.hub)


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], server: FaultServer) -> Terminal:
    TinyModel().write(server.root / FOLDER)
    return Terminal(capsys, server)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command takes long enough for its progress line."""
    monkeypatch.setattr(models_cli, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(models_cli, "_TICK_SECONDS", 0.0)


def stored_file(tmp_path: Path, data: bytes) -> Path:
    [path] = [path for path in (tmp_path / "cache" / "blobs").glob("*.bin") if path.read_bytes() == data]
    return path


# What is there


def test_empty_store_says_so(terminal: Terminal) -> None:
    assert terminal("list") == "No models are stored.\n"
    assert terminal("files") == "No files are stored.\n"
    assert terminal("verify") == "All 0 files are what they were when they were stored.\n"
    assert "Stored files              0.0 MB" in terminal("usage")
    assert terminal.errors == ""


def test_models_and_files_are_listed_in_tables(terminal: Terminal, server: FaultServer) -> None:
    terminal.prefetch("--engine", "cats")
    heads, row, summary = terminal("list").splitlines()
    assert heads.split() == ["MODEL", "REVISION", "HUB", "FILES", "SIZE", "LAST", "USED", "TASKS", "ENGINES"]
    assert row.split()[:6] == [MODEL, REVISION, f"{server.url.removeprefix('http://')}/hub/", "5", "<", "0.1"]
    assert row.split()[-2:] == ["feature-extraction", "cats"]
    assert row.index("feature-extraction") == heads.index("TASKS")
    assert summary == "1 in all, < 0.1 MB"

    heads, *rows = terminal("files", MODEL).splitlines()
    assert [line.split()[2] for line in rows] == [
        "config.json",
        "manifest.json",
        FILES["fp32"],
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert all(len(line.split()[-1]) == 64 for line in rows)
    assert len({line.index(line.split()[-1]) for line in [*rows, heads]}) == 1


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], 5),
        ([MODEL], 5),
        (["tests/other"], 0),
        (["--revision", "main"], 0),
        (["--revision", REVISION], 5),
        (["--task", "feature-extraction"], 4),
        (["--task", "fill-mask"], 0),
        (["--engine", "cats"], 4),
        (["--hub", "huggingface"], 0),
    ],
)
def test_files_are_selected_by_what_is_named(terminal: Terminal, words: list[str], found: int) -> None:
    terminal.prefetch("--engine", "cats")
    lines = terminal("files", *words).splitlines()
    assert len(lines) - 1 == found
    assert len(terminal("files", *terminal.hub).splitlines()) - 1 == 5


def test_usage_counts_what_is_unfinished(terminal: Terminal, server: FaultServer) -> None:
    server.fault(f"*/{FILES['fp32']}", "truncate", 1000, times=1)
    server.fault(f"*/{FILES['fp32']}", "status", 404)
    terminal.prefetch()
    assert terminal.status == 1
    lines = [line.split("  ") for line in terminal("usage").splitlines()]
    assert [line[0] for line in lines] == ["Stored files", "Unfinished downloads", "Free on the disk"]
    assert lines[1][-1] == "< 0.1 MB"


# Before and while downloading


def test_plan_tells_files_and_sizes(terminal: Terminal, server: FaultServer) -> None:
    server.synthetic(f"/{FOLDER}/{FILES['q8']}", 12_340_000)
    (server.root / FOLDER / "manifest.json").unlink()
    printed = terminal("plan", MODEL, "--revision", REVISION, *terminal.hub)
    *lines, summary = printed.splitlines()
    assert lines[0].split() == ["FILE", "FOR", "SIZE", "STORED"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["config.json", "config"],
        ["tokenizer.json", "tokenizer"],
        ["tokenizer_config.json", "tokenizer"],
        [FILES["q8"], "weights"],
    ]
    assert [line.split()[-1] for line in lines[1:]] == ["yes", "no", "no", "no"]
    assert lines[-1].split()[2:4] == ["12.3", "MB"]
    assert summary == f"{MODEL} ({REVISION}): 12.3 MB, 12.3 MB to download"


def test_prefetch_downloads_once(terminal: Terminal, server: FaultServer) -> None:
    assert terminal.prefetch() == f"{MODEL} ({REVISION}) is here: < 0.1 MB, < 0.1 MB of it new.\n"
    assert f"GET /{FOLDER}/{FILES['fp32']}" in server.requests()
    server.forget()
    assert terminal.prefetch() == f"{MODEL} ({REVISION}) is here: < 0.1 MB, 0.0 MB of it new.\n"
    assert server.requests() == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["--dtype", "fp32"], "fp32"),
        (["--dtype", "encoder_model=fp32", "--dtype", "decoder=q4"], {"encoder_model": "fp32", "decoder": "q4"}),
    ],
)
def test_dtype_is_one_or_one_for_each_module(words: list[str], expected: Any) -> None:
    assert models_cli._dtype(words[1::2] or None) == expected


@pytest.mark.usefixtures("quick")
def test_long_work_tells_how_far_it_is(terminal: Terminal) -> None:
    terminal.prefetch()
    lines = terminal.errors.splitlines()
    assert lines[0].startswith(f"Downloading {MODEL}")
    assert terminal.status == 0


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("quick")
async def test_line_on_a_terminal_is_written_over_and_cleared() -> None:
    stream = FakeTerminal()
    line = ProgressLine("Working", stream)

    async def work() -> int:
        for text in ("10 % of everything", "20 %"):
            line.tell(text)
            for _ in range(10):
                await asyncio.sleep(0)
        return 5

    assert await line.during(work()) == 5
    written = stream.getvalue().split("\r")
    assert "Working: 10 % of everything (0 s)" in written
    # As long as the one before, so that nothing of it stays.
    assert any(text.startswith("Working: 20 % (0 s)   ") for text in written)
    assert (written[-2].strip(), written[-1]) == ("", "")
    assert "\n" not in stream.getvalue()


async def test_short_work_shows_no_line() -> None:
    stream = FakeTerminal()
    await ProgressLine("Working", stream).during(asyncio.sleep(0))
    assert stream.getvalue() == ""


def test_line_tells_bytes_of_all_files_and_names_of_imported_ones() -> None:
    told: list[str] = []

    class Line(ProgressLine):
        def tell(self, state: str) -> None:
            told.append(state)

    line = Line("Working", FakeTerminal())
    line.on_event(ProgressEvent("loading", "in_progress", "x", 45.4, total=90_400_000))
    line.on_event(ProgressEvent("downloading", "in_progress", "x", 12.0))
    line.on_event(ProgressEvent("importing", "in_progress", "x", 12.0, metadata={"file": "a.onnx"}))
    assert told == ["45 % of 90.4 MB", "a.onnx 12 %"]


# Checking, pinning and deleting


def test_verify_names_damaged_files_and_ends_with_status_1(terminal: Terminal, tmp_path: Path) -> None:
    terminal.prefetch()
    assert terminal("verify") == "All 5 files are what they were when they were stored.\n"
    weights = TinyModel().files()[FILES["fp32"]]
    stored_file(tmp_path, weights).write_bytes(weights[::-1])
    printed = terminal("verify", MODEL)
    assert printed == f"damaged: {MODEL} ({REVISION}) {FILES['fp32']}\n"
    assert terminal.status == 1
    assert "1 of 5 files were damaged and have been removed" in terminal.errors
    assert terminal("verify").startswith("All 4 files")


def test_pin_and_unpin_are_seen_in_the_list(terminal: Terminal) -> None:
    terminal.prefetch()
    assert terminal("pin", MODEL) == "Pinned 5 files.\n"
    heads, row, _ = terminal("list").splitlines()
    assert (heads.split()[-1], row.split()[-1]) == ("PINNED", "pinned")
    assert terminal("unpin", MODEL, "--revision", REVISION) == "Unpinned 5 files.\n"
    assert "PINNED" not in terminal("list")
    assert terminal("pin", "tests/other") == "Pinned 0 files.\n"


def test_delete_frees_what_is_selected_and_nothing_else_is_using(terminal: Terminal) -> None:
    terminal.prefetch("--engine", "one")
    terminal.prefetch("--engine", "two")
    assert terminal("delete", "--engine", "one") == "Freed 0.0 MB.\n"
    assert len(terminal("files").splitlines()) == 6
    assert terminal("delete", MODEL) == "Freed < 0.1 MB.\n"
    assert terminal("list") == "No models are stored.\n"


def test_delete_without_a_selection_is_refused(terminal: Terminal) -> None:
    terminal.prefetch()
    assert "Say what to delete" in terminal.refuses("delete")
    assert len(terminal("files").splitlines()) == 6


def test_purge_keeps_the_named_revisions(terminal: Terminal, server: FaultServer) -> None:
    for revision in ("v1.0.0", "v2.0.0", "v3.0.0"):
        TinyModel().write(server.root / "hub" / MODEL / revision)
        terminal("prefetch", MODEL, "--revision", revision, *terminal.hub)
    terminal("purge", MODEL, "--keep", "v2.0.0", "--keep", "v3.0.0")
    assert [line.split()[1] for line in terminal("list").splitlines()[1:-1]] == ["v2.0.0", "v3.0.0"]
    terminal("purge", MODEL, "--keep", "v3.0.0", "--hub", "mozilla")
    assert len(terminal("list").splitlines()) == 4


# There and back


@pytest.mark.parametrize("target", ["out", "out.tar"])
def test_models_go_out_and_come_back(terminal: Terminal, server: FaultServer, tmp_path: Path, target: str) -> None:
    terminal.prefetch()
    place = tmp_path / target
    assert terminal("export", place, MODEL) == f"Wrote < 0.1 MB to {place}.\n"
    if target == "out.tar":
        with tarfile.open(place) as archive:
            assert f"{MODEL}/{REVISION}/config.json" in archive.getnames()
    else:
        assert (place / MODEL / REVISION / "config.json").is_file()
    terminal("delete", MODEL)
    server.fault("*", "drop", method="*")
    assert terminal("import", place, *terminal.hub) == f"Imported {MODEL} ({REVISION}).\n"
    assert terminal.prefetch().endswith("0.0 MB of it new.\n")


def test_imported_model_is_of_the_named_hub(terminal: Terminal, tmp_path: Path) -> None:
    TinyModel().write(tmp_path / "in" / MODEL / REVISION)
    terminal("import", tmp_path / "in", "--hub", "huggingface")
    assert terminal("list").splitlines()[1].split()[2] == "huggingface.co/"
    assert len(terminal("files", "--hub", "huggingface").splitlines()) > 1


# Refusals


def test_errors_are_one_line(terminal: Terminal, tmp_path: Path) -> None:
    assert "nothing to export" in terminal.refuses("export", tmp_path / "out")
    assert "cannot be read" in terminal.refuses("import", tmp_path / "absent", *terminal.hub)
    (tmp_path / "empty").mkdir()
    assert "There is no model" in terminal.refuses("import", tmp_path / "empty", *terminal.hub)
    assert "config.json" in terminal.refuses("plan", "tests/other", *terminal.hub)
    assert "dtype" in terminal.refuses("plan", MODEL, "--dtype", "float32", *terminal.hub)
    assert "MODULE=DTYPE" in terminal.refuses("plan", MODEL, "--dtype", "q8", "--dtype", "a=q8", *terminal.hub)
    assert "Did you mean" in terminal.refuses("plan", MODEL, "--task", "feature-extracton", *terminal.hub)
    assert "--hub-root-url" in terminal.refuses("list", "--hub-url-template", "{model}/{revision}")
    assert "root of a hub" in terminal.refuses("list", "--hub-root-url", "ftp://x/")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["bake"],
        ["plan", MODEL],
        ["prefetch", MODEL, "--hub", "example"],
        ["prefetch", MODEL, "--hub", "mozilla", "--hub-root-url", "https://hub.example/"],
        ["import", "folder"],
        ["import", "--hub", "mozilla"],
        ["export"],
        ["purge", MODEL],
        ["purge", "--keep", "main"],
        ["usage", MODEL],
        ["list", MODEL, "tests/other"],
        ["delete", "--everything"],
    ],
)
def test_wrong_words_end_with_status_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", *words])
    assert caught.value.code == 2


def test_token_comes_from_the_environment_and_is_printed_nowhere(
    terminal: Terminal, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault("/hub/*", "auth", f"Bearer {TOKEN}")
    assert "hub_access_tokens" in terminal.refuses("plan", MODEL, "--revision", REVISION, *terminal.hub)
    assert "has no access token" in terminal.refuses("plan", MODEL, "--access-token-env", "MY_TOKEN", *terminal.hub)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    printed = terminal.prefetch("--access-token-env", "MY_TOKEN")
    assert terminal.status == 0
    assert TOKEN not in printed + terminal.errors
    monkeypatch.setenv("MY_TOKEN", f"{TOKEN} x")
    assert TOKEN not in terminal.refuses("plan", MODEL, "--access-token-env", "MY_TOKEN", *terminal.hub)


def test_stopping_it_is_no_accident(
    terminal: Terminal, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models_cli, "stored_models", stop)
    assert main(["models", "list"]) == 130
    assert capsys.readouterr().err == "pywebml: stopped\n"
