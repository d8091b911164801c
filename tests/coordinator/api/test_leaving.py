"""A caller that leaves, in any way, is out of KV cache and queue two steps later; no other is aborted."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from coordinator.engine.client.base import EngineClient
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.messages.commands import CheckIntegrity
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.stats import EngineStats
from expertmesh.v1 import generation_pb2 as pb
from tests.cache_sizes import whole_sizes
from tests.coordinator.api.both_fronts import Fronts, both_fronts
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, generate_request
from tests.coordinator.engine.client.clients import CLIENTS, heard
from tests.coordinator.engine.fakes import CountingRunner, GatedRunner

pytestmark = BOTH_ENGINES

MAX_STEPS = 2
BODY = {"prompt": [5, 6, 7], "max_tokens": 20, "ignore_eos": True}


class Watched(Engine):
    """Remembers what it was told to abort."""

    aborted: list[str]

    def abort(self, request_id: str) -> list[Output]:
        self.aborted.append(request_id)
        return super().abort(request_id)


@dataclass
class Served:
    """Both fronts of an engine that takes a step when it may."""

    fronts: Fronts
    engine: EngineClient
    core: Watched
    runner: CountingRunner


@asynccontextmanager
async def served(runner: CountingRunner, client: str) -> AsyncIterator[Served]:
    """One sequence runs at a time; the others wait."""
    core = Watched(Scheduler(whole_sizes(16), max_num_seqs=1, max_step_tokens=64), runner, 32)
    core.aborted = []
    engine = await CLIENTS[client](EngineThread(core))
    try:
        async with both_fronts(engine) as fronts:
            yield Served(fronts, engine, core, runner)
    finally:
        if isinstance(runner, GatedRunner):
            runner.permit(1000)
        assert await engine.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def in_engine(stats: EngineStats) -> tuple[int, int, int]:
    """What runs, what waits, and the blocks in use."""
    return stats.num_running, stats.num_waiting, stats.num_blocks - stats.num_free_blocks


class GrpcCaller:
    """Calls over gRPC, and ends the calls in one of three ways."""

    def __init__(self, fronts: Fronts, way: str, *, streams: bool) -> None:
        self._fronts = fronts
        self._way = way
        self._method = fronts.stub.GenerateStream if streams else fronts.stub.Generate
        self._calls: list[Any] = []

    async def call(self) -> None:
        message = generate_request("stopping { max_tokens: 20 ignore_eos: true }", "hi")
        timeout = 1.0 if self._way == "deadline" else None
        self._calls.append(self._method(message, timeout=timeout))

    async def leave(self) -> None:
        if self._way == "channel":
            await self._fronts.channel.close()
        for call in self._calls:
            if self._way == "cancel":
                call.cancel()
            with suppress(asyncio.CancelledError):
                await call.code()


class HttpCaller:
    """Calls over HTTP, and closes its connections."""

    def __init__(self, fronts: Fronts, way: str, *, streams: bool) -> None:
        self._url = fronts.http.base_url
        self._streams = streams
        self._writers: list[asyncio.StreamWriter] = []

    async def call(self) -> None:
        _, writer = await asyncio.open_connection(self._url.host, self._url.port)
        body = json.dumps({**BODY, "stream": self._streams}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        self._writers.append(writer)

    async def leave(self) -> None:
        for writer in self._writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("streams", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [(GrpcCaller, "cancel"), (GrpcCaller, "deadline"), (GrpcCaller, "channel"), (HttpCaller, "disconnect")],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_caller_that_leaves_is_gone_within_two_steps(
    kind: type[GrpcCaller] | type[HttpCaller], way: str, streams: bool, client: str
) -> None:
    """One request runs and two wait; the step that is under way when they leave is one of the two."""
    runner = GatedRunner()
    async with served(runner, client) as here:
        engine, caller = here.engine, kind(here.fronts, way, streams=streams)
        for _ in range(3):
            await caller.call()
        await until(lambda: len(engine.request_ids) == 3)
        await heard(engine)
        runner.permit(3)
        # A step is counted when it begins, and stats tell of it when it has ended.
        await until(lambda: len(runner.steps) == 3 and in_engine(engine.stats()) == (1, 2, 2))
        await caller.leave()
        await until(lambda: len(engine.request_ids) == 0)
        await heard(engine)
        num_steps = len(runner.steps)
        runner.permit(100)
        await until(lambda: not engine.stats().num_running + engine.stats().num_waiting)
        assert len(runner.steps) - num_steps <= MAX_STEPS
        stats = engine.stats()
        assert stats.num_free_blocks == stats.num_blocks
        await asyncio.to_thread(engine.call, CheckIntegrity())
        assert len(here.core.aborted) == 3
        gate = here.fronts.gate
        await until(lambda: gate.num_calls == gate.admission.num_sequences == 0)
        assert gate.admission.num_waiting_tokens == 0
        if kind is HttpCaller:
            await until(lambda: here.fronts.observed == [("/v1/completions", 499)] * 3)


@pytest.mark.parametrize("client", CLIENTS)
async def test_nothing_is_aborted_after_a_normal_end(client: str) -> None:
    async with served(CountingRunner(), client) as here:
        fronts = here.fronts
        message = pb.GenerateRequest(text="hi", sampling=pb.SamplingParams(num_sequences=2, temperature=1))
        await fronts.stub.Generate(message)
        assert [event async for event in fronts.stub.GenerateStream(message)]
        for body in (BODY, {**BODY, "n": 2, "temperature": 1}, {**BODY, "prompt": ["a", "b"]}):
            for streams in (False, True):
                response = await fronts.http.post("/v1/completions", json={**body, "stream": streams})
                assert response.status_code == 200
        await asyncio.to_thread(here.engine.call, CheckIntegrity())
        assert here.core.aborted == []
        stats = here.engine.stats()
        assert stats.num_free_blocks == stats.num_blocks
