"""Drafts: files whose writing was suspended, by their writer or by the end of its process.

    drafts/<hash of key>.part  the bytes, each at its place
    drafts/<hash of key>.json  the journal: key, token, and the ranges that are there
    drafts/<hash of key>.lock  locked while somebody writes

A range is in the journal only after its bytes are in the file, so a process may be killed at any moment. Neither is
flushed to the disk meanwhile: after a power cut the journal can name bytes that are not there, which the hash shows.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pywebml.platform import BlobKey
from pywebml.platform.native_locks import FileLock, discard

Ranges = list[tuple[int, int]]

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a draft that nobody touches stays."""


def add_range(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> Ranges:
    """With [begin, end) there too; ranges that touch become one."""
    if begin >= end:
        return list(ranges)
    before = [item for item in ranges if item[1] < begin]
    after = [item for item in ranges if item[0] > end]
    touched = [item for item in ranges if item[1] >= begin and item[0] <= end]
    if touched:
        begin, end = min(begin, touched[0][0]), max(end, touched[-1][1])
    return [*before, (begin, end), *after]


def cut_range(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> Ranges:
    """Without [begin, end)."""
    if begin >= end:
        return list(ranges)
    parts = [part for b, e in ranges for part in ((b, min(e, begin)), (max(b, end), e))]
    return [(b, e) for b, e in parts if b < e]


def has_range(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Whether all of [begin, end) is there."""
    return begin == end or any(b <= begin and end <= e for b, e in ranges)


def front(ranges: Sequence[tuple[int, int]]) -> int:
    """How many bytes are there from the beginning without a hole."""
    return ranges[0][1] if ranges and ranges[0][0] == 0 else 0


@dataclass(frozen=True, slots=True)
class Draft:
    """What a journal says.

    Attributes:
        key: Of the file.
        token: Of its writer.
        ranges: What is there.
    """

    key: BlobKey
    token: str
    ranges: Ranges

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return sum(end - begin for begin, end in self.ranges)


class Drafts:
    """The folder of drafts. All methods block.

    Args:
        folder: The folder.
        replace: Writes a small file in one step.
    """

    def __init__(self, folder: Path, replace: Callable[[Path, str], None]) -> None:
        self.folder = folder
        self._replace = replace

    def data(self, stem: str) -> Path:
        """Where the bytes are."""
        return self.folder / f"{stem}.part"

    def _journal(self, stem: str) -> Path:
        return self.folder / f"{stem}.json"

    def lock(self, stem: str) -> FileLock | None:
        """The right to change this draft, or None while somebody writes it."""
        return FileLock.take(self.folder / f"{stem}.lock")

    def load(self, stem: str) -> Draft | None:
        """What can be gone on with. A journal that is broken, or has no bytes, is none."""
        try:
            draft = _parse(self._journal(stem).read_text(encoding="utf-8"))
            size = self.data(stem).stat().st_size
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return Draft(draft.key, draft.token, cut_range(draft.ranges, size, max(size, *(e for _, e in draft.ranges), 0)))

    def save(self, stem: str, draft: Draft) -> None:
        """Write the journal."""
        value = {
            "key": [draft.key.kind, draft.key.owner, draft.key.revision, draft.key.path],
            "token": draft.token,
            "ranges": draft.ranges,
        }
        self._replace(self._journal(stem), json.dumps(value))

    def remove(self, stem: str) -> None:
        """Forget a draft, of which the caller has the lock."""
        self._journal(stem).unlink(missing_ok=True)
        discard(self.data(stem))

    def take_back(self, stem: str, data: Path) -> bool:
        """Whether `data` are the bytes of a draft whose writer died in the middle of making it visible; then it is a
        draft again."""
        if self.data(stem).exists() or not self._journal(stem).exists():
            return False
        data.replace(self.data(stem))
        return True

    def all(self) -> Iterator[Draft]:
        """Every draft, also those that somebody is writing, in the order in which they were last touched."""
        for path in sorted(self.folder.glob("*.json"), key=_touched):
            draft = self.load(path.stem)
            if draft is not None:
                yield draft

    def drop(
        self, stems: Sequence[str] | None, worth: Callable[[Draft, float], bool] = lambda draft, at: False
    ) -> None:
        """Remove drafts that nobody is writing.

        Args:
            stems: Which; None: all.
            worth: Of the draft and when its journal was written: whether it stays.
        """
        if stems is None:
            stems = sorted({path.name.split(".")[0] for path in self.folder.iterdir()})
        for stem in stems:
            lock = self.lock(stem)
            if lock is None:
                continue
            try:
                draft = self.load(stem)
                if draft is None or not worth(draft, self._journal(stem).stat().st_mtime):
                    self.remove(stem)
            finally:
                lock.release()


def _touched(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        # Somebody has removed it meanwhile.
        return 0.0


def _parse(text: str) -> Draft:
    """A journal, of which every field is as we write it. Raises ValueError."""
    value = json.loads(text)
    with contextlib.suppress(KeyError, TypeError):
        key, token, ranges = value["key"], value["token"], [(begin, end) for begin, end in value["ranges"]]
        numbers = [number for item in ranges for number in item]
        if (
            len(key) == 4
            and all(isinstance(part, str) for part in [*key, token])
            and all(type(number) is int for number in numbers)
            and all(low < high for low, high in zip([-1, *numbers], numbers, strict=False))
        ):
            return Draft(BlobKey(*key), token, ranges)
    raise ValueError("no journal")
