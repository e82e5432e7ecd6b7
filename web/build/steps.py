"""Build steps that run only when something they read has changed, and commands with logs.

A step is skipped when the fingerprint of its inputs is the one of the last success and every file it wrote then
is still there with the same size and time.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from web.build.paths import LOGS, ROOT, STAMPS

# Larger inputs (runtimes, wheels) count by size and time: hashing them at every start would take seconds.
HASHED_UP_TO = 4 * 1024 * 1024
HEARTBEAT_SECONDS = 15
LOG_TAIL_LINES = 30


class BuildError(Exception):
    """A step failed. `hint` says what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the build's table.

    Attributes:
        name: For the command line and the stamp.
        title: What a person reads while it runs.
        inputs: Glob patterns and folders below the repository root; what decides whether to run again.
        outputs: Glob patterns and folders below the repository root; what must still be there to skip.
        run: Does the work; raises `BuildError`.
        after: Steps whose results this one reads.
        versions: Anything else that the result depends on.
    """

    name: str
    title: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[[], None]
    after: tuple[str, ...] = ()
    versions: Callable[[], str] = lambda: ""


def files_of(patterns: Sequence[str]) -> Iterator[Path]:
    """Files below the repository root that the patterns name, sorted and without caches of the interpreter."""
    found: set[Path] = set()
    for pattern in patterns:
        path = ROOT / pattern
        matches = [path] if path.exists() else ROOT.glob(pattern)
        for match in matches:
            found.update([match] if match.is_file() else (p for p in match.rglob("*") if p.is_file()))
    return iter(sorted(p for p in found if "__pycache__" not in p.parts))


def _fingerprint(step: Step, earlier: dict[str, str]) -> str:
    digest = hashlib.sha256(step.versions().encode())
    for name in step.after:
        digest.update(f"{name}={earlier[name]}\n".encode())
    # The table and the helpers are inputs of every step: a changed build must not keep old results.
    for path in files_of([*step.inputs, "web/build/__main__.py", "web/build/steps.py"]):
        status = path.stat()
        if status.st_size <= HASHED_UP_TO:
            identity = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            identity = f"{status.st_size} {status.st_mtime_ns}"
        digest.update(f"{path.relative_to(ROOT)} {identity}\n".encode())
    return digest.hexdigest()


def _written(step: Step) -> dict[str, list[int]]:
    state = {}
    for path in files_of(step.outputs):
        status = path.stat()
        state[str(path.relative_to(ROOT))] = [status.st_size, status.st_mtime_ns]
    return state


def run_steps(steps: Sequence[Step], *, force: Sequence[str] = ()) -> bool:
    """Run what is out of date, in the table's order.

    Returns:
        Whether any step had to run.

    Raises:
        BuildError: A step failed. Its stamp is gone, so that the next build tries it again.
    """
    STAMPS.mkdir(parents=True, exist_ok=True)
    fingerprints: dict[str, str] = {}
    ran = False
    for number, step in enumerate(steps, 1):
        stamp = STAMPS / f"{step.name}.json"
        fingerprint = _fingerprint(step, fingerprints)
        fingerprints[step.name] = fingerprint
        try:
            last = json.loads(stamp.read_text())
        except (OSError, ValueError):
            last = None
        written = _written(step)
        if step.name not in force and written and last == {"fingerprint": fingerprint, "files": written}:
            continue
        stamp.unlink(missing_ok=True)
        print(f"[{number}/{len(steps)}] {step.title}", flush=True)
        started = time.monotonic()
        step.run()
        written = _written(step)
        if not written:
            raise BuildError(f"The step {step.name!r} wrote nothing to {', '.join(step.outputs)}.")
        stamp.write_text(json.dumps({"fingerprint": fingerprint, "files": written}))
        print(f"      done in {time.monotonic() - started:.1f} s", flush=True)
        ran = True
    return ran


def run_command(arguments: Sequence[str | Path], log_name: str, *, hint: str, limit_seconds: int = 1200) -> str:
    """Run an external command with its output in `build/logs/`.

    Args:
        arguments: The command.
        log_name: File name of the log without its ending.
        hint: What a person can do when it fails.
        limit_seconds: It is stopped after this many seconds.

    Returns:
        What the command wrote.

    Raises:
        BuildError: It could not start, took too long or failed; with the end of the log.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{log_name}.log"
    started = time.monotonic()
    with log.open("w+") as output:
        try:
            process = subprocess.Popen(
                [str(argument) for argument in arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except OSError as error:
            raise BuildError(f"{arguments[0]} could not be started: {error}.", hint) from error
        try:
            while True:
                try:
                    status = process.wait(timeout=HEARTBEAT_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                    print(f"      … {elapsed:.0f} s", flush=True)
                    if elapsed > limit_seconds:
                        raise BuildError(
                            f"{arguments[0]} was stopped after {elapsed:.0f} s (log: {log.relative_to(ROOT)}).", hint
                        ) from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    text = log.read_text(errors="replace")
    if status != 0:
        tail = "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
        raise BuildError(
            f"{Path(str(arguments[0])).name} ended with status {status}; the end of {log.relative_to(ROOT)}:\n{tail}",
            hint,
        )
    return text
