"""A full queue says so at once, with the time after which it is of use to come back."""

import asyncio
import statistics
import time

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
