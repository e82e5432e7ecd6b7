"""Stopping work from outside: `AbortController` and `AbortSignal`, as the web platform names them.

Source: WHATWG DOM, "Aborting ongoing activities".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pywebml.errors import AbortError

T = TypeVar("T")


class AbortSignal:
    """Tells whether, and why, work should stop. Made by an `AbortController`."""

    def __init__(self) -> None:
        self._reason: str | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def aborted(self) -> bool:
        """Whether `abort` was called."""
        return self._reason is not None

    @property
    def reason(self) -> str:
        """What `abort` was given; empty before."""
        return self._reason or ""

    def add_callback(self, callback: Callable[[], None]) -> None:
        """Have `callback` called once, when the signal aborts."""
        self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], None]) -> None:
        """Take a callback back, if it is still there."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def _abort(self, reason: str) -> None:
        if self._reason is None:
            self._reason = reason
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()


class AbortController:
    """Holds a signal and aborts it."""

    def __init__(self) -> None:
        self.signal = AbortSignal()

    def abort(self, reason: str = "The caller stopped the work.") -> None:
        """Stop everything that listens to the signal. A second call changes nothing."""
        self.signal._abort(reason)


async def abortable(work: Coroutine[Any, Any, T], signal: AbortSignal | None) -> T:
    """Await `work`, but no longer than `signal` lets it.

    Raises:
        AbortError: The signal aborted; `work` was cancelled and has cleaned up.
    """
    if signal is None:
        return await work
    if signal.aborted:
        work.close()
        raise AbortError(signal.reason)
    task = asyncio.ensure_future(work)

    def stop() -> None:
        task.cancel()

    signal.add_callback(stop)
    try:
        return await task
    except asyncio.CancelledError:
        # Cancelled by the signal, this is an answer to the caller; cancelled from above, it goes on up.
        if _aborted(signal) and not _being_cancelled():
            raise AbortError(signal.reason) from None
        task.cancel()
        raise
    finally:
        signal.remove_callback(stop)


async def together(*work: Awaitable[Any]) -> list[Any]:
    """Await everything at once. When one part fails, the others are cancelled, and the first error goes on alone."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done() and not task.cancelled() and task.exception() is not None:
                await task
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _aborted(signal: AbortSignal) -> bool:
    return signal.aborted


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
