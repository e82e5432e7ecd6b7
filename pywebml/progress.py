"""Progress events in Firefox's schema, and a counter that emits them for one transfer.

Source: Firefox `toolkit/components/ml`, `docs/notifications.rst`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

EventType = Literal["downloading", "loading_from_cache", "running_inference"]
StatusText = Literal["initiate", "size_estimate", "in_progress", "done"]


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One step of something that takes time.

    Attributes:
        type: What is going on.
        status_text: `initiate` first, `size_estimate` when the size is known, `in_progress` per chunk, `done`
            last, also after a failure (then `ok` is False).
        id: What this is about: a file's URL, or a request's id.
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
