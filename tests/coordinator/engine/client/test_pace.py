"""Pace: tokens are told of at once while that costs little, and those of several steps together else."""

import asyncio

import pytest

from coordinator.engine.client.pace import LONGEST_WAIT, SHARE, Pace
from coordinator.engine.client.request_streams import RequestStreams
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.request import Abort, Request
from tests.models import make_request


class Clock:
    """A loop whose time stands until it is moved, and a thread whose use of the processor is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.used = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_at(self, at: float, callback: object) -> "Timer":
        self.timers.append(Timer(at, callback))
        return self.timers[-1]

    def move(self, seconds: float) -> None:
        self.now += seconds
        for timer in [timer for timer in self.timers if timer.at <= self.now]:
            self.timers.remove(timer)
            timer.fire()


class Timer:
    def __init__(self, at: float, callback: object) -> None:
        self.at, self._callback = at, callback
        self._is_off = False

    def cancel(self) -> None:
        self._is_off = True

    def fire(self) -> None:
        if not self._is_off:
            assert callable(self._callback)
            self._callback()


def paced() -> tuple[Clock, Pace, list[float]]:
    clock, told = Clock(), list[float]()
    return clock, Pace(lambda: told.append(clock.now), clock, lambda: clock.used), told  # type: ignore[arg-type]


def test_what_costs_little_is_told_at_once() -> None:
    clock, pace, told = paced()
    for _ in range(5):
        clock.move(0.002)
        clock.used += 0.002 * SHARE / 2
        pace.due()
    assert told == pytest.approx([100.002, 100.004, 100.006, 100.008, 100.010])


def test_what_costs_more_is_told_less_often() -> None:
    clock, told = Clock(), list[float]()

    def tell() -> None:
        told.append(clock.now)
        clock.used += 0.001

    pace = Pace(tell, clock, lambda: clock.used)  # type: ignore[arg-type]
    for _ in range(400):
        clock.move(0.001)
        pace.due()
    # A telling takes a millisecond.
    assert len(told) == pytest.approx(400 * SHARE, abs=4)


def test_no_token_waits_longer_than_it_may() -> None:
    clock, pace, told = paced()
    clock.used += 100.0
    pace.due()
    clock.move(LONGEST_WAIT / 2)
    pace.due()
    assert told == []
    clock.move(LONGEST_WAIT / 2 + 1e-6)
    assert told == pytest.approx([100.0 + LONGEST_WAIT])


def test_nothing_is_told_once_it_is_closed() -> None:
    clock, pace, told = paced()
    clock.used += 1.0
    pace.due()
    pace.close()
    clock.move(1.0)
    assert told == []


async def turn() -> None:
    """All that can run now has run."""
    after = asyncio.Event()
    asyncio.get_running_loop().call_soon(after.set)
    await after.wait()


async def test_tokens_that_are_held_come_in_order_before_what_follows() -> None:
    sent: list[Request | Abort] = []
    streams = RequestStreams(sent.append)
    # As after much work: tokens are held, and what is more than a token is not.
    streams._pace = Pace(streams._tell, asyncio.get_running_loop(), iter([0.0, 1e6, 2e6]).__next__)
    other = asyncio.ensure_future(anext(streams.stream(make_request("other"))))
    await turn()
    stream = streams.stream(make_request("r", max_tokens=4))
    first = asyncio.ensure_future(anext(stream))
    await turn()
    key = sent[1].request_id
    streams.deliver([Output(key, (1,))])
    assert (await first).token_ids == (1,)
    second = asyncio.ensure_future(anext(stream))
    await turn()
    streams.deliver_tokens([(1, 0, 2)])
    streams.deliver_tokens([(1, 0, 3)])
    await turn()
    assert not second.done()
    streams.deliver([Output(key, (4,), FinishReason.LENGTH)])
    last = await second
    assert (last.token_ids, last.finish_reason) == ((2, 3, 4), FinishReason.LENGTH)
    await stream.aclose()
    other.cancel()


async def test_a_stream_that_is_alone_waits_for_nothing() -> None:
    streams = RequestStreams(lambda message: None)
    streams._pace = Pace(streams._tell, asyncio.get_running_loop(), iter([0.0, 1e6, 2e6]).__next__)
    stream = streams.stream(make_request("r", max_tokens=4))
    for token_id in (1, 2):
        reader = asyncio.ensure_future(anext(stream))
        await turn()
        streams.deliver_tokens([(0, 0, token_id)])
        assert (await reader).token_ids == (token_id,)
    await stream.aclose()
