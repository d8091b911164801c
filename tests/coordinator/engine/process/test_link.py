"""What an engine says of its requests comes out at its fronts, whenever they read; none holds up another."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from coordinator.engine.client.output_stream import MAX_UNREAD_BYTES, Unread
from coordinator.engine.messages.errors import EngineError, SlowConsumerError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import FinishReason, Output
from coordinator.engine.messages.stats import EngineStats
from coordinator.engine.process import frames
from coordinator.engine.process.client import ProcessEngine
from moe_model.errors import NumericError
from tests.coordinator.engine.process.linked import (
    SpokenThread,
    deaf,
    flood,
    linked,
    read,
    request_of,
    turn,
    until,
)
from tests.coordinator.engine.process.said import steps_of
from tests.examples import examples

NUM_REQUESTS, NUM_SEQUENCES = 3, 2


async def begun(
    thread: SpokenThread, front: ProcessEngine, name: str, num_sequences: int = 1
) -> tuple["asyncio.Task[list[Output]]", str]:
    """The reader of a request, and the engine's key of it."""
    num_before = len(thread.requests)
    reader = asyncio.create_task(read(front, request_of(name, num_sequences)))
    await until(lambda: len(thread.requests) > num_before)
    return reader, thread.requests[-1].request_id


@settings(max_examples=examples(60))
@given(steps_of(NUM_REQUESTS, NUM_SEQUENCES), st.data())
def test_all_outputs_come_out_whenever_the_front_reads(
    steps: list[list[tuple[int, Output]]], data: st.DataObject
) -> None:
    """The front reads only where the test lets the loop turn; a flood may fill the socket before."""
    may_read = [data.draw(st.booleans()) for _ in steps]
    if data.draw(st.booleans()):
        steps, may_read = [[(0, flood(""))], *steps], [False, *may_read]
    asyncio.run(_say(steps, may_read))


async def _say(steps: list[list[tuple[int, Output]]], may_read: list[bool]) -> None:
    thread = SpokenThread()
    async with linked(thread) as (front,):
        begun_ = [await begun(thread, front, f"r{n}", NUM_SEQUENCES) for n in range(NUM_REQUESTS)]
        for step, reads in zip(steps, may_read, strict=True):
            thread.say([replace(output, request_id=begun_[number][1]) for number, output in step])
            if reads:
                await turn()
        for number, (reader, _) in enumerate(begun_):
            outputs = await asyncio.wait_for(reader, 30)
            assert {output.request_id for output in outputs} == {f"r{number}"}
            assert merged(outputs) == merged([each for step in steps for n, each in step if n == number])
        assert thread.aborted == []


def merged(outputs: list[Output]) -> list[Output]:
    """By sequence."""
    unread = Unread("", max_bytes=1 << 40)
    for output in outputs:
        assert unread.put(output)
    return sorted(unread.take(), key=lambda output: output.index)


async def test_outputs_arrive_as_they_were_said() -> None:
    """Where the front keeps up, nothing is merged."""
    thread = SpokenThread()
    async with linked(thread) as (front,):
        stream = front.stream(request_of("a"))
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: thread.requests)
        key = thread.requests[0].request_id
        thread.say([Output(key, (5,))])
        assert await first == Output("a", (5,))
        thread.say([Output(key, (6,))])
        assert await anext(stream) == Output("a", (6,))
        thread.say([Output(key, (7,), FinishReason.STOP)])
        assert [output async for output in stream] == [Output("a", (7,), FinishReason.STOP)]


async def test_of_one_sequence_what_is_more_than_a_token_stays_in_its_place() -> None:
    thread = SpokenThread()
    async with linked(thread) as (front,):
        reader, key = await begun(thread, front, "a")
        thread.say([Output(key, (1, 2)), Output(key, (3,)), Output(key, (4,), FinishReason.LENGTH)])
        assert [token for output in await reader for token in output.token_ids] == [1, 2, 3, 4]


async def test_a_front_that_does_not_read_holds_up_no_other() -> None:
    """And gets everything when it reads again, though the engine has long gone on."""
    thread = SpokenThread()
    async with linked(thread, num_fronts=2) as (slow, quick):
        slow_reader, slow_key = await begun(thread, slow, "slow")
        quick_reader, quick_key = await begun(thread, quick, "quick")
        with deaf(slow):
            thread.say([flood(slow_key)])
            for token in range(200):
                thread.say([Output(slow_key, (token,)), Output(quick_key, (token,))])
            thread.now = EngineStats(num_steps=202)
            thread.say([Output(key, (9,), FinishReason.STOP) for key in (slow_key, quick_key)])
            outputs = await asyncio.wait_for(quick_reader, 30)
            assert sum(len(output.token_ids) for output in outputs) == 201
            assert not slow_reader.done()
        tokens = [token for output in await slow_reader for token in output.token_ids]
        assert tokens == [*range(200), 9]
        await until(lambda: slow.stats().num_steps == 202)


async def test_a_request_of_which_too_much_waits_ends_and_its_neighbours_do_not() -> None:
    thread = SpokenThread()
    async with linked(thread) as (front,):
        large, large_key = await begun(thread, front, "large")
        small, small_key = await begun(thread, front, "small")
        thread.say([flood(large_key), Output(small_key, (1,))])
        thread.say([flood(large_key, MAX_UNREAD_BYTES + 1)])
        assert thread.aborted == []
        thread.say([flood(large_key, 1)])
        assert thread.aborted == [large_key]
        thread.say([Output(large_key, (1,)), Output(small_key, (2,), FinishReason.LENGTH)])
        with pytest.raises(SlowConsumerError, match="more output waits"):
            await asyncio.wait_for(large, 30)
        assert [token for output in await small for token in output.token_ids] == [1, 2]


@pytest.mark.parametrize("lags", [False, True])
async def test_a_request_that_says_more_than_a_frame_ends_and_the_engine_goes_on(
    lags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the routing of a very long prompt."""
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 3 << 19)
    thread = SpokenThread()
    async with linked(thread) as (front,):
        large, large_key = await begun(thread, front, "large")
        small, small_key = await begun(thread, front, "small")
        if lags:
            thread.say([flood(large_key)])
        thread.say([flood(large_key, 2 << 20), Output(small_key, (1,))])
        with pytest.raises(SlowConsumerError, match="more output waits"):
            await asyncio.wait_for(large, 30)
        thread.say([Output(small_key, (2,), FinishReason.LENGTH)])
        assert [token for output in await small for token in output.token_ids] == [1, 2]


@pytest.mark.parametrize("lags", [False, True])
async def test_a_request_whose_news_cannot_be_told_ends_and_the_engine_goes_on(lags: bool) -> None:
    thread = SpokenThread()
    async with linked(thread) as (front,):
        broken, broken_key = await begun(thread, front, "broken")
        sound, sound_key = await begun(thread, front, "sound")
        if lags:
            thread.say([flood(sound_key)])
        thread.say([Output(broken_key, (1 << 64, 1)), Output(sound_key, (2,), FinishReason.LENGTH)])
        with pytest.raises(SlowConsumerError):
            await asyncio.wait_for(broken, 30)
        assert [token for output in await sound for token in output.token_ids] == [2]


async def test_a_stream_that_is_not_read_ends_and_its_neighbours_do_not() -> None:
    """Its front reads the socket, its caller reads nothing."""
    thread = SpokenThread()
    async with linked(thread) as (front,):
        unread, other = front.stream(request_of("unread")), front.stream(request_of("other"))
        tokens = [asyncio.ensure_future(anext(stream)) for stream in (unread, other)]
        await until(lambda: len(thread.requests) == 2)
        key, other_key = (request.request_id for request in thread.requests)
        thread.say([Output(key, (0,)), Output(other_key, (0,))])
        await asyncio.gather(*tokens)
        for token in range(3):
            assert thread.aborted == []
            thread.say([flood(key, MAX_UNREAD_BYTES // 2 + 1), Output(other_key, (token,))])
            assert (await anext(other)).token_ids == (token,)
        await until(lambda: thread.aborted == [key])
        assert (await anext(unread)).prompt is not None
        with pytest.raises(SlowConsumerError, match="more output waits"):
            await anext(unread)
        await other.aclose()


async def test_a_failure_comes_after_what_was_said() -> None:
    thread = SpokenThread()
    async with linked(thread) as (front,):
        stream = front.stream(request_of("a", num_sequences=2))
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: thread.requests)
        key = thread.requests[0].request_id
        thread.say([Output(key, (5,)), Output(key, failure=Failure.of(NumericError("broken")), index=1)])
        assert (await first).token_ids == (5,)
        with pytest.raises(NumericError, match="broken"):
            await anext(stream)


async def test_an_engine_that_has_failed_ends_all_requests_of_all_fronts() -> None:
    thread = SpokenThread()
    async with linked(thread, num_fronts=2) as fronts:
        readers = [(await begun(thread, front, "a"))[0] for front in fronts]
        thread.now = EngineStats(stopped=True)
        thread.fail(EngineError("the engine has stopped"))
        for front, reader in zip(fronts, readers, strict=True):
            with pytest.raises(EngineError, match="has stopped"):
                await asyncio.wait_for(reader, 30)
            assert front.stats().stopped
            assert not front.stats().lost


async def test_equal_ids_of_two_fronts_are_two_requests() -> None:
    thread = SpokenThread()
    async with linked(thread, num_fronts=2) as (first, second):
        one, one_key = await begun(thread, first, "a")
        two, two_key = await begun(thread, second, "a")
        assert one_key != two_key
        assert await first.abort(["a"]) == ["a"]
        # An operator reaches those of all fronts through any of them.
        await until(lambda: thread.aborted == [one_key, two_key])
        thread.say([Output(one_key, (1,), FinishReason.ABORT), Output(two_key, (2,), FinishReason.STOP)])
        assert [output.token_ids for output in await one + await two] == [(1,), (2,)]


async def test_outputs_that_no_request_waits_for_are_dropped() -> None:
    """Of one that was aborted, and of one that never was a front's."""
    thread = SpokenThread()
    async with linked(thread) as (front,):
        gone, gone_key = await begun(thread, front, "a")
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await until(lambda: thread.aborted == [gone_key])
        reader, key = await begun(thread, front, "a")
        thread.say([Output(gone_key, (1,), FinishReason.ABORT), Output("warm-up", (1,))])
        thread.say([Output(key, (2,), FinishReason.STOP)])
        assert [output.token_ids for output in await reader] == [(2,)]
