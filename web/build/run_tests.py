"""Runs every check and test and sums up: `python -m web.build.run_tests [--only lint|python|node|browser]`.

All stages run, whatever fails before them. The last line is `N passed, N failed`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from web.build.paths import BUILD, LOGS, NODE_MODULES, ROOT

PYTHON = sys.executable
BINARIES = NODE_MODULES / ".bin"


@dataclass(slots=True)
class Outcome:
    """How a stage went. `passed` and `failed` count tests; a stage without tests counts in `ok` only."""

    ok: bool
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One row of the summary.

    Attributes:
        name: What the row is called.
        command: What to run.
        count: Reads the tests that passed, failed and were skipped from the stage's report.
        limit_seconds: It is stopped after this many seconds.
        hint: What to do when it fails.
    """

    name: str
    command: tuple[str | Path, ...]
    limit_seconds: int
    hint: str
    count: Callable[[], tuple[int, int, int]] | None = None
    environment: tuple[tuple[str, str], ...] = ()


PYTEST_REPORT = LOGS / "pytest.xml"
NODE_REPORT = LOGS / "node-tests.tap"
BROWSER_REPORT = LOGS / "playwright.json"
NODE_TESTS = BUILD / "node-tests"


def _count_pytest() -> tuple[int, int, int]:
    # pytest wrote this file itself.
    suites = ET.parse(PYTEST_REPORT).getroot().iter("testsuite")  # noqa: S314
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - failed - skipped, failed, skipped


def _count_node() -> tuple[int, int, int]:
    text = NODE_REPORT.read_text()
    counts = {name: int(number) for name, number in re.findall(r"^# (\w+) (\d+)$", text, re.MULTILINE)}
    return counts["pass"], counts["fail"] + counts["cancelled"], counts["skipped"] + counts["todo"]


def _count_playwright() -> tuple[int, int, int]:
    stats = json.loads(BROWSER_REPORT.read_text())["stats"]
    return stats["expected"] + stats["flaky"], stats["unexpected"], stats["skipped"]


LINT = (
    Stage("ruff check", (PYTHON, "-m", "ruff", "check", "."), 120, "ruff check --fix mends much of it."),
    Stage("ruff format", (PYTHON, "-m", "ruff", "format", "--check", "."), 120, "Run: .venv/bin/ruff format ."),
    Stage("mypy", (PYTHON, "-m", "mypy"), 600, "Each line names a file and what does not fit."),
    Stage("biome", (BINARIES / "biome", "check", "."), 120, "Run: npm run format"),
    Stage("tsc", (BINARIES / "tsc", "--noEmit"), 300, "Each line names a file and what does not fit."),
)
BUILD_STAGE = Stage("build", (PYTHON, "-m", "web.build"), 900, "The message above says what to do.")
PYTEST = Stage(
    "pytest",
    (PYTHON, "-m", "pytest", f"--junitxml={PYTEST_REPORT}", "--durations=5"),
    1500,
    "Run one test alone: .venv/bin/python -m pytest PATH -k NAME",
    _count_pytest,
)
BUNDLE_TESTS = Stage("bundle node tests", ("node", "web/build/bundle.mjs", "tests"), 120, "The message names the file.")
BROWSER = Stage(
    "browser",
    (BINARIES / "playwright", "test", "--reporter=list,json"),
    900,
    "Run one test alone: npx playwright test -g NAME",
    _count_playwright,
    (("PLAYWRIGHT_JSON_OUTPUT_FILE", str(BROWSER_REPORT)), ("PLAYWRIGHT_JSON_OUTPUT_NAME", str(BROWSER_REPORT))),
)


def _node_stage() -> Stage:
    tests = sorted(NODE_TESTS.glob("*.mjs"))
    reporters = ("--test-reporter=spec", "--test-reporter-destination=stdout", "--test-reporter=tap")
    return Stage(
        "node",
        ("node", "--enable-source-maps", "--test", *reporters, f"--test-reporter-destination={NODE_REPORT}", *tests),
        300,
        "Run one file alone: node --test build/node-tests/NAME.mjs",
        _count_node,
    )


def run_stage(stage: Stage) -> Outcome:
    """Run one stage with its output on the terminal."""
    print(f"\n=== {stage.name}", flush=True)
    for report in (PYTEST_REPORT, NODE_REPORT, BROWSER_REPORT):
        if stage.count is not None and stage.name in ("pytest", "node", "browser"):
            report.unlink(missing_ok=True)
    note = ""
    try:
        process = subprocess.Popen(
            [str(part) for part in stage.command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **dict(stage.environment)},
            start_new_session=True,
        )
    except OSError as error:
        print(f"{stage.command[0]} could not be started: {error}", flush=True)
        return Outcome(ok=False, note="could not be started")
    try:
        status = process.wait(timeout=stage.limit_seconds)
    except subprocess.TimeoutExpired:
        status, note = 1, f"stopped after {stage.limit_seconds} s"
    finally:
        # Browsers and servers that a stage started must not outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    outcome = Outcome(ok=status == 0, note=note)
    if stage.count is not None:
        try:
            outcome.passed, outcome.failed, outcome.skipped = stage.count()
        except (OSError, ET.ParseError, KeyError, TypeError, ValueError):
            outcome.ok, outcome.note = False, note or "wrote no report"
        outcome.ok = outcome.ok and outcome.failed == 0
    if not outcome.ok:
        print(f"{stage.name} failed{f' ({outcome.note})' if outcome.note else ''}. {stage.hint}", flush=True)
    return outcome


def _stages(only: str | None) -> Sequence[Stage]:
    chosen: list[Stage] = []
    if only in (None, "lint"):
        chosen += LINT
    if only in (None, "python", "browser"):
        chosen.append(BUILD_STAGE)
    if only in (None, "python"):
        chosen.append(PYTEST)
    if only in (None, "node"):
        chosen.append(BUNDLE_TESTS)
    if only in (None, "browser"):
        chosen.append(BROWSER)
    return chosen


def main() -> int:
    """Run the stages and print the summary."""
    parser = argparse.ArgumentParser(prog="./build.sh test", description="Runs every check and test.")
    parser.add_argument("--only", choices=["lint", "python", "node", "browser"], help="one part alone")
    arguments = parser.parse_args()
    LOGS.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Stage, Outcome, float]] = []

    def record(stage: Stage) -> Outcome:
        started = time.monotonic()
        outcome = run_stage(stage)
        rows.append((stage, outcome, time.monotonic() - started))
        return outcome

    for stage in _stages(arguments.only):
        outcome = record(stage)
        # The list of bundled tests is known only now.
        if stage is BUNDLE_TESTS and outcome.ok and any(NODE_TESTS.glob("*.mjs")):
            record(_node_stage())

    print(f"\n{'stage':<20}{'result':<8}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for stage, outcome, seconds in rows:
        counts = (outcome.passed, outcome.failed, outcome.skipped)
        cells = [str(count) if stage.count else "" for count in counts]
        result = "ok" if outcome.ok else "FAILED"
        print(
            f"{stage.name:<20}{result:<8}{cells[0]:>8}{cells[1]:>8}{cells[2]:>9}{seconds:>9.1f}"
            + (f"  {outcome.note}" if outcome.note else "")
        )
    broken = [(stage, outcome) for stage, outcome, _ in rows if not outcome.ok]
    for stage, _ in broken:
        print(f"failed: {stage.name}. {stage.hint}")
    # A stage that fails without a failed test of its own (a linter, a crash) counts as one failure.
    failed = sum(max(1, outcome.failed) for _, outcome in broken)
    print(f"{sum(outcome.passed for _, outcome, _ in rows)} passed, {failed} failed", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
