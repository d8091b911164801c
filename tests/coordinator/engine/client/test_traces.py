"""Steps of traced requests are told to the front that traces them, before their outputs, wherever the engine
is."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.engine.client.base import EngineClient
from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.process.client import ProcessEngine
from coordinator.engine.process.server import EngineServer
from coordinator.engine.telemetry.traces import StepTraces
from tests.coordinator.engine.client.clients import CLIENTS, PATIENCE, heard
from tests.coordinator.engine.fakes import CountingRunner, engine_over
from tests.models import make_request

NUM_TOKENS = 5


def observed() -> tuple[EngineThread, Operated]:
    traces = StepTraces()
    return EngineThread(engine_over(CountingRunner(), observer=traces)), Operated(traces=traces)


async def numbers_told(engine: EngineClient, trace: int | None, name: str = "r") -> list[int]:
    """Runs a request with this trace; which trace each step was told of, until the request's end."""
    told: list[TracedStep] = []
    engine.follow(told.append)
    request = replace(make_request(name, (1, 2), NUM_TOKENS), trace=trace)
    async for _ in engine.stream(request):
        pass
    return [each.trace for step in told for each in step.step.traces]


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("trace", [0, 9, (1 << 40) - 1])
async def test_each_step_is_told_before_its_output(kind: str, trace: int) -> None:
    engine = await CLIENTS[kind](*observed())
    assert await numbers_told(engine, trace) == NUM_TOKENS * [trace]
    assert await engine.close()


@pytest.mark.parametrize("kind", CLIENTS)
async def test_nothing_is_told_of_a_request_without_a_trace(kind: str) -> None:
    engine = await CLIENTS[kind](*observed())
    assert await numbers_told(engine, None) == []
    assert await engine.close()


@asynccontextmanager
async def two_fronts() -> AsyncIterator[list[ProcessEngine]]:
    server = EngineServer(*observed())
    with tempfile.TemporaryDirectory(prefix="expertmesh-") as folder:
        path = Path(folder) / "engine"
        await server.serve(path)
        fronts = [await ProcessEngine.connect(path, PATIENCE) for _ in range(2)]
        yield fronts
        for front in fronts:
            await front.close()
        assert await server.close()


async def test_each_front_hears_of_its_own() -> None:
    """Though both give the same numbers."""
    async with two_fronts() as fronts:
        found = await asyncio.gather(*(numbers_told(front, 3, f"r{n}") for n, front in enumerate(fronts)))
        assert found == 2 * [NUM_TOKENS * [3]]
        for front in fronts:
            await heard(front)
