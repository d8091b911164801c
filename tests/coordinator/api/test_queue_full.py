"""A full queue says so at once, with the time after which it is of use to come back."""

import asyncio
import statistics
import time

import pytest

from tests.coordinator.api.both_fronts import Setup, both_fronts
from tests.coordinator.api.engine_kinds import BOTH_ENGINES
from tests.coordinator.api.fakes import PATIENCE, FakeEngine, failure_of, generate_request

pytestmark = BOTH_ENGINES

MAX_SECONDS = 0.010


async def test_within_ten_milliseconds() -> None:
    """The best median of a few: what other programs on this machine take is not looked at."""
    engine = FakeEngine(asyncio.Event())
    async with both_fronts(engine, setup=Setup(max_requests=1)) as fronts:
        running = fronts.stub.Generate(generate_request())
        await asyncio.wait_for(engine.started.wait(), PATIENCE)

        async def refusal() -> float:
            started = time.perf_counter()
            failed = await failure_of(fronts.stub.GenerateStream(generate_request(), timeout=PATIENCE))
            seconds = time.perf_counter() - started
            assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
            assert failed.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0
            assert failed.details["QuotaFailure"].violations[0].subject == "requests"
            return seconds

        medians = [statistics.median([await refusal() for _ in range(11)]) for _ in range(5)]
        assert len(engine.requests) == 1, "the engine hears nothing of them"
        running.cancel()
    assert min(medians) < MAX_SECONDS


@pytest.mark.parametrize("name", ["Generate", "GenerateStream"])
async def test_a_full_server_looks_at_no_message(name: str) -> None:
    """What a refused call asks for, right or wrong, costs nothing; it keeps its id."""
    engine = FakeEngine(asyncio.Event())
    async with both_fronts(engine, setup=Setup(max_requests=1)) as fronts:
        held = fronts.stub.Generate(generate_request())
        await asyncio.wait_for(engine.started.wait(), PATIENCE)
        wrong = generate_request('request_id: "mine" sampling { temperature: 99 }')
        failed = await failure_of(getattr(fronts.stub, name)(wrong))
        held.cancel()
    assert (failed.code, failed.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert failed.details["RequestInfo"].request_id == failed.trailing_metadata["x-request-id"] == "mine"
    assert "RetryInfo" in failed.details
