"""Build steps run when, and only when, something they depend on has changed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from web.build import steps
from web.build.steps import BuildError, Step, run_command, run_steps


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    monkeypatch.setattr(steps, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(steps, "LOGS", tmp_path / "logs")
    (tmp_path / "input.txt").write_text("1")
    return tmp_path


class Copying:
    """A step that copies a file and counts its runs."""

    def __init__(self, root: Path, source: str, target: str, after: tuple[str, ...] = ()) -> None:
        self.runs = 0
        self.root, self.source, self.target = root, source, target
        self.step = Step(target, f"Copying to {target}", (source,), (target,), self.run, after)

    def run(self) -> None:
        self.runs += 1
        (self.root / self.target).write_bytes((self.root / self.source).read_bytes())


def test_an_unchanged_step_is_skipped(root: Path) -> None:
    copying = Copying(root, "input.txt", "output.txt")
    assert run_steps([copying.step])
    assert not run_steps([copying.step])
    assert copying.runs == 1


def test_a_changed_input_runs_the_step_and_those_after_it(root: Path) -> None:
    first = Copying(root, "input.txt", "middle.txt")
    second = Copying(root, "fixed.txt", "output.txt", after=("middle.txt",))
    (root / "fixed.txt").write_text("x")
    run_steps([first.step, second.step])
    (root / "input.txt").write_text("2")
    run_steps([first.step, second.step])
    assert (first.runs, second.runs) == (2, 2)


@pytest.mark.parametrize("damage", ["delete", "change"])
def test_a_missing_or_changed_output_runs_the_step(root: Path, damage: str) -> None:
    copying = Copying(root, "input.txt", "output.txt")
    run_steps([copying.step])
    if damage == "delete":
        (root / "output.txt").unlink()
    else:
        (root / "output.txt").write_text("something else")
    run_steps([copying.step])
    assert (root / "output.txt").read_text() == "1"


def test_another_version_of_a_tool_runs_the_step(root: Path) -> None:
    copying = Copying(root, "input.txt", "output.txt")
    run_steps([replace(copying.step, versions=lambda: "tool 1")])
    run_steps([replace(copying.step, versions=lambda: "tool 2")])
    assert copying.runs == 2


def test_a_failed_step_runs_again(root: Path) -> None:
    copying = Copying(root, "input.txt", "output.txt")
    run_steps([copying.step])

    def fail() -> None:
        raise BuildError("broken")

    with pytest.raises(BuildError, match="broken"):
        run_steps([replace(copying.step, run=fail)], force=["output.txt"])
    run_steps([copying.step])
    assert copying.runs == 2


def test_a_step_that_writes_nothing_is_an_error(root: Path) -> None:
    step = Step("idle", "Doing nothing", ("input.txt",), ("output.txt",), lambda: None)
    with pytest.raises(BuildError, match=r"'idle' wrote nothing to output\.txt"):
        run_steps([step])


def test_a_failed_command_shows_the_end_of_its_log(root: Path) -> None:
    script = "import sys; print(*range(100), sep='\\n'); print('the reason'); sys.exit(3)"
    with pytest.raises(BuildError) as caught:
        run_command([sys.executable, "-c", script], "failing", hint="do this")
    text = str(caught.value)
    assert "status 3" in text
    assert "logs/failing.log" in text
    assert "the reason" in text
    assert "\n50\n" not in text
    assert caught.value.hint == "do this"


def test_a_command_that_does_not_exist_is_named(root: Path) -> None:
    with pytest.raises(BuildError, match="no-such-command could not be started"):
        run_command(["no-such-command"], "missing", hint="install it")
