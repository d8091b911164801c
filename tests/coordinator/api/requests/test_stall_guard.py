"""A wait that lasts too long is cut off, and nothing else is."""

import asyncio

import pytest

from coordinator.api.requests.stall_guard import StallGuard


async def test_a_wait_that_lasts_too_long_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with StallGuard(0.02) as guard:
        with pytest.raises(TimeoutError):
            await guard.wait(forever())
    assert cancelled.is_set()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_many_short_waits_together_may_last_longer() -> None:
    loop = asyncio.get_running_loop()
    started, ticks = loop.time(), 0
    async with StallGuard(0.05) as guard:
        while loop.time() - started < 0.15:
            assert await guard.wait(_value(ticks)) == ticks
            ticks += 1
    assert ticks > 3


async def _value(value: int) -> int:
    turn = asyncio.Event()
    asyncio.get_running_loop().call_later(0.005, turn.set)
    await turn.wait()
    return value


async def test_time_between_waits_does_not_count() -> None:
    async with StallGuard(0.02) as guard:
        assert await guard.wait(_value(1)) == 1
        for _ in range(10):
            await _value(0)
        assert await guard.wait(_value(2)) == 2


async def test_a_cancel_from_outside_stays_one() -> None:
    entered = asyncio.Event()

    async def run() -> None:
        async with StallGuard(60) as guard:
            entered.set()
            await guard.wait(asyncio.Event().wait())

    task = asyncio.create_task(run())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_the_wait_goes_through() -> None:
    async def broken() -> None:
        raise OSError("gone")

    async with StallGuard(60) as guard:
        with pytest.raises(OSError, match="gone"):
            await guard.wait(broken())


async def test_after_a_timeout_it_still_guards_and_a_cancel_is_still_one() -> None:
    async with StallGuard(0.02) as guard:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await guard.wait(asyncio.Event().wait())
    entered = asyncio.Event()

    async def run() -> None:
        async with StallGuard(0.05) as guard:
            with pytest.raises(TimeoutError):
                await guard.wait(asyncio.Event().wait())
            entered.set()
            await guard.wait(asyncio.Event().wait())

    task = asyncio.create_task(run())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
