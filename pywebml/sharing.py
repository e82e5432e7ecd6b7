"""Work that several callers want at the same time and that is done once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pywebml.progress import ProgressCallback, ProgressEvent, ignore_progress

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Job(Generic[Result]):
    listeners: list[ProgressCallback] = field(default_factory=list)
    waiting: int = 0
    task: asyncio.Task[Result] | None = None

    def emit(self, event: ProgressEvent) -> None:
        for listener in list(self.listeners):
            listener(event)


class SharedWork(Generic[Key, Result]):
    """Does work once per key, however many callers wait for it. Nothing is kept once it is done."""

    def __init__(self) -> None:
        self._jobs: dict[Key, _Job[Result]] = {}

    async def do(
        self,
        key: Key,
        work: Callable[[ProgressCallback], Coroutine[Any, Any, Result]],
        on_progress: ProgressCallback = ignore_progress,
    ) -> Result:
        """The result of `work`, which others may have started.

        Args:
            key: What the work is about.
            work: Is called with where its events go: to everyone who waits.
            on_progress: Gets the events from now on.

        Raises:
            asyncio.CancelledError: The caller was cancelled. The work goes on while others wait for it; else it was
                cancelled too, and has cleaned up.
        """
        job = self._jobs.get(key)
        if job is None:
            job = self._jobs[key] = _Job()
            job.task = asyncio.ensure_future(work(job.emit))
        assert job.task is not None
        job.listeners.append(on_progress)
        job.waiting += 1
        try:
            return await asyncio.shield(job.task)
        except asyncio.CancelledError:
            if job.waiting == 1:
                # Who comes from now on starts anew.
                self._forget(key, job)
                job.task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await job.task
            raise
        finally:
            job.waiting -= 1
            job.listeners.remove(on_progress)
            if job.waiting == 0 or job.task.done():
                self._forget(key, job)

    def _forget(self, key: Key, job: _Job[Result]) -> None:
        if self._jobs.get(key) is job:
            del self._jobs[key]
