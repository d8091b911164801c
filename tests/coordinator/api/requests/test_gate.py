"""Who may come in, and who is in."""

import asyncio
from contextlib import suppress

import pytest

from coordinator.api.requests.gate import Backend, Gate
from coordinator.api.shared.errors import ApiError, Reason
from tests.coordinator.api.fakes import FakeEngine, served_model


@pytest.fixture
async def gate() -> Gate:
    gate = Gate()
    gate.open(Backend(served_model(), FakeEngine()))
    return gate


async def test_closed_until_opened() -> None:
    with pytest.raises(ApiError) as caught, Gate().call():
        pass
    assert caught.value.reason is Reason.NOT_READY


async def test_draining_refuses_new_calls_only(gate: Gate) -> None:
    with gate.call():
        gate.drain()
        assert gate.num_calls == 1
        with pytest.raises(ApiError) as caught, gate.call():
            pass
    assert caught.value.reason is Reason.DRAINING
    assert gate.num_calls == 0


async def test_waits_for_the_last_call(gate: Gate) -> None:
    release, inside = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        with gate.call():
            inside.set()
            await release.wait()

    task = asyncio.create_task(call())
    await inside.wait()
    with gate.call():
        assert gate.num_calls == 2
    for timeout in (0.0, 0.01):
        assert not await gate.wait_idle(timeout)
    release.set()
    assert await gate.wait_idle(5)
    assert await gate.wait_idle(0.0), "there is nothing to wait for"
    await task


async def test_evicts(gate: Gate) -> None:
    inside, seen = asyncio.Event(), []

    async def call() -> None:
        try:
            with gate.call():
                inside.set()
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(gate.was_evicted())

    task = asyncio.create_task(call())
    await inside.wait()
    gate.evict()
    assert await gate.wait_idle(5)
    await task
    assert seen == [True]
    assert not gate.was_evicted()


async def test_waits_until_ended_calls_have_told_their_callers(gate: Gate) -> None:
    """A call tells its caller only after it has left the gate."""
    inside, left, may_tell = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def call() -> None:
        try:
            with gate.call():
                inside.set()
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            left.set()
            await may_tell.wait()

    task = asyncio.create_task(call())
    await inside.wait()
    ending = asyncio.create_task(gate.end_calls(30))
    await left.wait()
    assert gate.num_calls == 0
    done, _ = await asyncio.wait({ending}, timeout=0.05)
    assert not done
    may_tell.set()
    await ending
    assert task.done()
    await gate.end_calls(30)


async def test_a_caller_that_reads_nothing_is_not_waited_for_any_longer(gate: Gate) -> None:
    inside, may_tell = asyncio.Event(), asyncio.Event()

    async def call() -> None:
        with suppress(asyncio.CancelledError), gate.call():
            inside.set()
            await asyncio.Event().wait()
        await may_tell.wait()

    task = asyncio.create_task(call())
    await inside.wait()
    await gate.end_calls(0.01)
    assert not task.done()
    may_tell.set()
    await task


async def test_an_id_is_claimed_once_at_a_time(gate: Gate) -> None:
    with gate.claim("a"):
        with gate.claim("b"):
            pass
        with pytest.raises(ApiError) as caught, gate.claim("a"):
            pass
        assert caught.value.reason is Reason.DUPLICATE_REQUEST_ID
        with pytest.raises(ApiError), gate.claim("a"):
            pass
    with gate.claim("a"):
        pass
