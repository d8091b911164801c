"""Streams against a real gRPC server with a scripted engine: all is recorded, nothing is sent again."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from chaos.history import Stream
from chaos.invariants import unaccounted, violations
from chaos.load import Load, LoadError, golden_outputs
from chaos.scenario import LoadSpec
from chaos.streams import record, request
from coordinator.api.shared.errors import ApiError, Reason
from expertmesh import Connection, Delta, Event, Finished, Started, Summary, Timings, Usage
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, logged, running, served_model

SPEC = LoadSpec(streams=2, requests=3, tokens=3, prompts=("a {number}",), timeout=10.0)
SUMMARY = Summary(Usage(1, 3), Timings(0.0, 0.0, 0.0))


def test_half_of_the_requests_are_greedy() -> None:
    spec = LoadSpec(prompts=("a {number}", "b"), seed=7, tokens=9)
    prompt, options = request(spec, 0)
    assert (prompt, options["temperature"], options["seed"]) == ("a 0", 0.8, 7)
    prompt, options = request(spec, 3)
    assert (prompt, options["temperature"], options["max_tokens"]) == ("b", 0.0, 9)
    assert "seed" not in options
    assert request(LoadSpec(sampling="greedy"), 2)[1]["temperature"] == 0.0
    assert request(LoadSpec(sampling="seeded", seed=1), 3)[1]["seed"] == 4


async def recorded(*events: Event) -> Stream:
    async def come() -> AsyncIterator[Event]:
        for event in events:
            yield event

    stream = Stream(0, 0.0)
    await record(come(), stream, lambda count: None)
    return stream


STARTED = Started("id", "model", 1, None)


async def test_a_stream_that_is_well_is_recorded_as_such() -> None:
    stream = await recorded(STARTED, Delta("", 2, (5, 6)), Delta("", 1, (7,)), Finished("length"), SUMMARY)
    assert list(stream.token_ids) == [5, 6, 7]
    assert list(violations(stream)) == []


async def test_what_a_server_does_wrong_is_seen() -> None:
    """The invariants see through the recorder."""
    missing = await recorded(STARTED, Delta("", 2, (5,)), Delta("", 1, (7,)), Finished("length"), SUMMARY)
    assert "token 2 came where token 1 was due" in list(violations(missing))
    late = await recorded(STARTED, Delta("", 2, (5, 6)), Finished("length"), Delta("", 1, (7,)), SUMMARY)
    assert "1 tokens came after the sequence had finished" in list(violations(late))
    after = await recorded(STARTED, Delta("", 3, (5, 6, 7)), Finished("length"), SUMMARY, Delta("", 1, (8,)))
    assert "1 tokens came after the terminal status" in list(violations(after))
    twice = await recorded(STARTED, Delta("", 3, (5, 6, 7)), Finished("length"), SUMMARY, SUMMARY)
    assert list(violations(twice)) == ["2 terminal statuses"]


async def test_a_closed_loop_sends_the_next_when_the_last_has_ended() -> None:
    async with running() as server:
        load = Load(server.server.address, Connection(), SPEC)
        load.start()
        await asyncio.to_thread(load.wait_tokens, 30)
        await asyncio.to_thread(load.stop, 10.0)
    assert {stream.outcome for stream in load.streams} == {"completed"}
    assert {stream.request for stream in load.streams} == {0, 1, 2}
    assert {tuple(stream.token_ids) for stream in load.streams} == {(40, 41, 42)}
    assert [list(violations(stream)) for stream in load.streams] == [[]] * len(load.streams)
    assert list(unaccounted(load.streams, load.num_sent)) == []
    assert load.num_tokens == 3 * len(load.streams) >= 30


async def test_an_open_loop_sends_whatever_comes_back() -> None:
    never = asyncio.Event()
    spec = replace(SPEC, loop="open", rate=100.0)
    async with running(FakeEngine(never)) as server:
        load = Load(server.server.address, Connection(), spec)
        load.start()
        async with asyncio.timeout(10):
            while len(server.engine.requests) < 10:
                await asyncio.to_thread(load.wait, 0.01)
        await asyncio.to_thread(load.stop, 0.0)
        assert {stream.outcome for stream in load.streams} == {"cancelled"}
        assert list(unaccounted(load.streams, load.num_sent)) == []


async def test_a_refusal_is_recorded_and_not_sent_again() -> None:
    """UNAVAILABLE is what grpc would send again by itself, and then there is a server."""
    async with running(ready=False) as server:
        load = Load(server.server.address, Connection(), replace(SPEC, streams=1))
        with logged("NOT_READY") as refused:
            load.start()
            await asyncio.wait_for(refused.wait(), PATIENCE)
        await server.server.set_ready(served_model(), server.engine)
        await asyncio.to_thread(load.wait_tokens, 2)
        await asyncio.to_thread(load.stop, 10.0)
    first = load.streams[0]
    assert (first.outcome, first.ends[0].code, first.ends[0].reason) == ("failed", "UNAVAILABLE", "NOT_READY")
    completed = [stream for stream in load.streams if stream.outcome == "completed"]
    assert len(server.engine.requests) == len(completed) >= 1


async def test_a_load_that_gets_nothing_does_not_wait_for_ever() -> None:
    spec = replace(SPEC, streams=1, timeout=0.3)
    async with running(FakeEngine(asyncio.Event())) as server:
        load = Load(server.server.address, Connection(), spec)
        load.start()
        began = time.monotonic()
        with pytest.raises(LoadError, match="0 tokens came, 5 were waited for"):
            await asyncio.to_thread(load.wait_tokens, 5)
        assert time.monotonic() - began < 10
        await asyncio.to_thread(load.stop, 10.0)
        await asyncio.to_thread(load.stop, 10.0)
    assert {stream.ends[0].code for stream in load.streams} == {"DEADLINE_EXCEEDED"}


async def test_what_is_right_is_learned_without_faults() -> None:
    async with running() as server:
        assert await golden_outputs(server.server.address, Connection(), SPEC) == [[40, 41, 42]] * 3


async def test_a_server_that_fails_without_faults_is_an_error() -> None:
    async with running(FakeEngine(ApiError.of(Reason.INVALID_FIELD, "no"))) as server:
        with pytest.raises(LoadError, match="without any fault, request 0 ended: INVALID_ARGUMENT"):
            await golden_outputs(server.server.address, Connection(), SPEC)
