"""Progress events in Firefox's schema, a counter that emits them for one transfer, and one for all of an engine.

Source: Firefox `toolkit/components/ml`, `docs/notifications.rst`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

EventType = Literal["downloading", "loading_from_cache", "running_inference", "loading", "importing"]
StatusText = Literal["initiate", "size_estimate", "in_progress", "done"]


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step of something that takes time.

    Attributes:
        type: What is going on. `loading` (all files of an engine together) and `importing` are ours.
        status_text: `initiate` first, `size_estimate` when the size is known, `in_progress` per chunk, `done`
            last, also after a failure (then `ok` is False).
        id: What this is about: a file's URL, a request's id, or (`loading`) the engine's id.
        progress: 0 to 100.
        total_loaded: Bytes so far.
        current_loaded: Bytes since the event before.
        total: Bytes in all; 0 while unknown.
        units: Always `bytes`.
        ok: False when it failed.
        metadata: For a file: `model`, `revision`, `file`, `url`, `taskName`.
    """

    type: EventType
    status_text: StatusText
    id: str
    progress: float = 0.0
    total_loaded: int = 0
    current_loaded: int = 0
    total: int = 0
    units: str = "bytes"
    ok: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data under Firefox's names (`statusText`, `totalLoaded`, `currentLoaded`)."""
        plain = asdict(self)
        plain["statusText"] = plain.pop("status_text")
        plain["totalLoaded"] = plain.pop("total_loaded")
        plain["currentLoaded"] = plain.pop("current_loaded")
        return plain


ProgressCallback = Callable[[ProgressEvent], None]


def ignore_progress(event: ProgressEvent) -> None:
    """The callback for callers who gave none."""


class TransferProgress:
    """Emits the events of one transfer: `initiate`, `size_estimate`, `in_progress` …, `done`.

    Args:
        emit: Where the events go.
        event_type: `downloading` or `loading_from_cache`.
        transfer_id: The file's URL.
        metadata: Goes unchanged into every event.
    """

    def __init__(
        self, emit: ProgressCallback, event_type: EventType, transfer_id: str, metadata: dict[str, Any]
    ) -> None:
        self._emit = emit
        self._type = event_type
        self._id = transfer_id
        self._metadata = metadata
        self._loaded = 0
        self._total = 0
        self._estimated = False

    def initiate(self) -> None:
        """The transfer is about to start."""
        self._send("initiate", 0)

    def expect(self, total: int) -> None:
        """The size in bytes is known (0: it is not)."""
        self._total = total

    def advance(self, count: int) -> None:
        """`count` more bytes have arrived."""
        self._loaded += count
        # A compressed or badly labelled body can be longer than announced: the total grows, never the progress
        # beyond 100.
        self._total = max(self._total, self._loaded)
        status: StatusText = "in_progress" if self._estimated else "size_estimate"
        self._estimated = True
        self._send(status, count)

    def reach(self, loaded: int) -> None:
        """So many bytes are there in all. Fewer than before, after a start from scratch, are no step back."""
        if loaded > self._loaded:
            self.advance(loaded - self._loaded)

    def done(self, *, ok: bool = True) -> None:
        """The transfer has ended."""
        if ok:
            self._total = self._loaded or self._total
            self._loaded = self._total
        self._send("done", 0, ok=ok)

    def _send(self, status: StatusText, count: int, *, ok: bool = True) -> None:
        finished = status == "done" and ok
        progress = 100.0 if finished else (100.0 * self._loaded / self._total if self._total else 0.0)
        self._emit(
            ProgressEvent(
                type=self._type,
                status_text=status,
                id=self._id,
                progress=progress,
                total_loaded=self._loaded,
                current_loaded=count,
                total=self._total,
                ok=ok,
                metadata=self._metadata,
            )
        )


FileName = tuple[str, str, str]
"""Model, revision and file, as in the metadata of its events."""


class TotalProgress:
    """Passes the events of single files on, and adds `loading` events about all of them together.

    The first of these comes from `start`, with the total of the plan. The total never shrinks, what is loaded neither,
    and `done` is at 100 %.

    Args:
        emit: Where the events go.
        engine_id: Names the `loading` events.
        metadata: Goes into every `loading` event.
    """

    def __init__(self, emit: ProgressCallback, engine_id: str, metadata: dict[str, Any]) -> None:
        self._emit = emit
        self._id = engine_id
        self._metadata = metadata
        self._sizes: dict[FileName, int] | None = None
        self._files: dict[FileName, int] = {}
        self._loaded = 0
        self._total = 0

    def start(self, sizes: Mapping[FileName, int]) -> None:
        """The plan is made.

        Args:
            sizes: Every file to its bytes; 0 while unknown.
        """
        self._sizes = dict(sizes)
        self._metadata = {**self._metadata, "files": len(sizes)}
        self._total = sum(sizes.values())
        self._loaded = self._sum()
        self._send("initiate", 0)

    def __call__(self, event: ProgressEvent) -> None:
        """Take an event of a single file."""
        self._emit(event)
        model, revision, file = (str(event.metadata.get(part)) for part in ("model", "revision", "file"))
        name = (model, revision, file)
        finished = event.status_text == "done" and event.ok
        self._files[name] = event.total if finished else event.total_loaded
        if self._sizes is None or name not in self._sizes:
            return
        if finished or not self._sizes[name]:
            self._sizes[name] = max(event.total, self._files[name])
        self._total = max(self._total, sum(self._sizes.values()))
        loaded = self._sum()
        if loaded > self._loaded:
            count, self._loaded = loaded - self._loaded, loaded
            self._send("in_progress", count)

    def done(self, *, ok: bool = True) -> None:
        """All files are there, or one of them is not to be had."""
        if self._sizes is None:
            return
        count = self._total - self._loaded if ok else 0
        self._loaded += count
        self._send("done", count, ok=ok)

    def _sum(self) -> int:
        return sum(min(self._files.get(name, 0), size) for name, size in (self._sizes or {}).items())

    def _send(self, status: StatusText, count: int, *, ok: bool = True) -> None:
        finished = status == "done" and ok
        progress = 100.0 if finished else (100.0 * self._loaded / self._total if self._total else 0.0)
        self._emit(
            ProgressEvent(
                type="loading",
                status_text=status,
                id=self._id,
                progress=progress,
                total_loaded=self._loaded,
                current_loaded=count,
                total=self._total,
                ok=ok,
                metadata={**self._metadata, "totalObjectsSeen": len(self._files)},
            )
        )
