from __future__ import annotations

import asyncio

import pytest

from pywebml.abort import AbortController, abortable, together
from pywebml.errors import AbortError


async def test_work_without_a_signal_just_runs() -> None:
    async def work() -> int:
        return 7

    assert await abortable(work(), None) == 7


async def test_an_aborted_signal_keeps_work_from_starting() -> None:
    started = False

    async def work() -> None:
        nonlocal started
        started = True

    controller = AbortController()
    controller.abort("No longer needed.")
    with pytest.raises(AbortError, match="No longer needed"):
        await abortable(work(), controller.signal)
    assert not started


async def test_aborting_cancels_the_work_and_waits_for_its_clean_up() -> None:
    controller = AbortController()
    started = asyncio.Event()
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned = True

    task = asyncio.ensure_future(abortable(work(), controller.signal))
    await started.wait()
    controller.abort()
    with pytest.raises(AbortError):
        await task
    assert cleaned


async def test_cancelling_from_above_stays_a_cancellation() -> None:
    controller = AbortController()
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(abortable(work(), controller.signal))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_second_abort_keeps_the_first_reason() -> None:
    controller = AbortController()
    controller.abort("first")
    controller.abort("second")

    assert controller.signal.reason == "first"


async def test_together_gives_results_in_order() -> None:
    async def value(number: int) -> int:
        await asyncio.sleep(0)
        return number

    assert await together(value(1), value(2), value(3)) == [1, 2, 3]


async def test_together_cancels_the_rest_when_one_part_fails() -> None:
    cancelled = False

    async def fails() -> None:
        raise ValueError("broken")

    async def waits() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(ValueError, match="broken"):
        await together(waits(), fails())
    assert cancelled
