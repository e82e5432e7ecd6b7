"""Where an unfinished conversion is kept, so that the next try goes on with what is good.

    {hub}/.pywebml-work/{name}--{revision}--{key}/     files under their final names
        state.json                                     what is finished, with sizes and hashes

The key is made of everything that decides over the bytes: the checkpoint, the choices and the versions.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pywebml.errors import PrepareError
from pywebml.platform.native_locks import FileLock
from pywebml.prepare.layout import disk_errors, sha256_of, write_json

WORK = ".pywebml-work"
STATE = "state.json"


def key_of(values: Mapping[str, Any]) -> str:
    """A short name for plain data; other data has another one."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class WorkFolder:
    """One unfinished conversion. Hold it with `with`; it is locked against other processes meanwhile.

    Args:
        hub: Root of the hub.
        name: Of the model.
        revision: In the hub.
        key: From `key_of`.
    """

    def __init__(self, hub: Path, name: str, revision: str, key: str) -> None:
        self._root = hub / WORK
        self._title = f"{name.replace('/', '--')}--{revision}"
        self.folder = self._root / f"{self._title}--{key}"
        self._state: dict[str, Any] = {}
        self._made: list[Path] = []

    def __enter__(self) -> WorkFolder:
        try:
            self._make_folders()
            lock = FileLock.take(self._root / f"{self._title}.lock")
            if lock is not None:
                self._lock = lock
                self._read_state()
        except OSError as error:
            self._tidy()
            raise PrepareError(
                f"Cannot write {self.folder}: {error.strerror or error}. Check the path, its permissions and the free "
                "space.",
                path=str(self.folder),
            ) from error
        if lock is None:
            raise PrepareError(f"Another conversion to {self._title.replace('--', ' ')} is under way. Wait for it.")
        return self

    def __exit__(self, *_error: object) -> None:
        self._lock.release()
        self._tidy()

    def _make_folders(self) -> None:
        missing = [folder for folder in (self.folder, *self.folder.parents) if not folder.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = missing

    def _read_state(self) -> None:
        try:
            state = json.loads((self.folder / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        self._state = state if isinstance(state, dict) else {}

    def finished(self, step: str) -> Any | None:
        """What `finish` was told of a step, if all its files still have the bytes that they had; else None."""
        entry = self._state.get(step)
        if entry is None:
            return None
        for path, expected in entry["files"].items():
            file = self.folder / path
            if not file.is_file() or file.stat().st_size != expected["size"] or sha256_of(file) != expected["sha256"]:
                del self._state[step]
                return None
        return entry["values"]

    def finish(self, step: str, files: Iterable[Path], values: Any) -> None:
        """A step is done.

        Args:
            step: Its name.
            files: What it has written into the folder.
            values: Plain data, for the next time.

        Raises:
            PrepareError: The disk does not allow it; the step is not done then.
        """
        part = self.folder / f"{STATE}.part"
        with disk_errors(self.folder / STATE):
            entry = {
                "files": {
                    path.relative_to(self.folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
                    for path in files
                },
                "values": values,
            }
            state = {**self._state, step: entry}
            write_json(part, state)
            part.replace(self.folder / STATE)
        self._state = state

    def discard(self) -> None:
        """Remove everything that belongs to this revision, other unfinished conversions to it too."""
        self._state = {}
        # The titles of other revisions may begin like this one; only a key may follow it.
        own = re.compile(re.escape(self._title) + "--[0-9a-f]{16}")
        for folder in self._root.iterdir():
            if own.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _tidy(self) -> None:
        """Where nothing is finished nothing stays, not even the folders that were made."""
        if self._state:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (self._root, *self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()
