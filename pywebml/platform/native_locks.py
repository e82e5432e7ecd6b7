"""Locks of the native platform: files that are locked while somebody holds them, by whichever process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

_FIRST_WAIT = 0.002
_LONGEST_WAIT = 0.1


def try_lock(descriptor: int, *, wait: bool) -> bool:
    """Lock a file while `descriptor` is open, against other processes and other descriptors."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno in {errno.EDEADLK, errno.EAGAIN}:
            return False
        raise
    return True


def discard(path: Path) -> None:
    """Remove a file, if it is there and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink()


def _unlock(descriptor: int, path: Path) -> None:
    # First the name, while it is still locked: who opened it before finds that it is another file now.
    discard(path)
    with contextlib.suppress(OSError):
        os.close(descriptor)


class FileLock:
    """A lock that one holder has, in all processes. It is free when the holder releases it, drops it or dies."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._unlock = weakref.finalize(self, _unlock, descriptor, path)

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """The lock, or None when somebody has it. Blocks for no longer than the file system takes."""
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
            try:
                if not try_lock(descriptor, wait=False):
                    os.close(descriptor)
                    return None
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        return cls(descriptor, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
                raise
            # Its last holder has removed it while we waited for nothing but the system.
            os.close(descriptor)

    def release(self) -> None:
        """Let others have it. Harmless when called again."""
        self._unlock()


Take: TypeAlias = Callable[[str], Awaitable[FileLock | None]]


class NameLocks:
    """`Platform.lock`: in the order of asking within an event loop, and by a file across loops and processes.

    Args:
        take: Takes the file's lock for a name, in a thread.
    """

    def __init__(self, take: Take) -> None:
        self._take_file = take
        self._guard = threading.Lock()
        # Those who hold one, or wait for it, keep it alive.
        self._queues: weakref.WeakValueDictionary[tuple[asyncio.AbstractEventLoop, str], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )

    @contextlib.asynccontextmanager
    async def hold(self, name: str) -> AsyncIterator[None]:
        """See `Platform.lock`."""
        place = (asyncio.get_running_loop(), name)
        with self._guard:
            queue = self._queues.get(place)
            if queue is None:
                queue = self._queues[place] = asyncio.Lock()
        async with queue:
            lock = await self._wait(name)
            try:
                yield
            finally:
                lock.release()

    async def _wait(self, name: str) -> FileLock:
        wait = _FIRST_WAIT
        while True:
            taking = asyncio.ensure_future(self._take_file(name))
            try:
                lock = await asyncio.shield(taking)
            except asyncio.CancelledError:
                # The thread cannot be stopped, so what it takes is given back when it is ready.
                taking.add_done_callback(_give_back)
                raise
            if lock is not None:
                return lock
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)


def _give_back(taking: asyncio.Future[FileLock | None]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        lock = taking.result()
        if lock is not None:
            lock.release()
