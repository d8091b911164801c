"""What an engine counts is told wherever it runs; a scrape waits for no engine that does not answer."""

import itertools
import threading

import pytest

from coordinator.engine.client.handlers import Operated
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.metrics import MetricsSnapshot, ReadMetrics
from coordinator.engine.messages.records import StepRecord
from coordinator.engine.process import client as process_client
from coordinator.engine.telemetry.counts import EngineCounts
from tests.coordinator.engine.client.clients import CLIENTS, over_a_socket
from tests.coordinator.engine.fakes import CountingRunner, engine_over


def thread() -> EngineThread:
    return EngineThread(engine_over(CountingRunner()))


@pytest.mark.parametrize("kind", CLIENTS)
async def test_counts_are_told(kind: str) -> None:
    counts = EngineCounts()
    counts.open([0])
    engine = await CLIENTS[kind](thread(), Operated({ReadMetrics: lambda _: counts.snapshot()}))
    before = await engine.counts()
    counts.step(StepRecord(0, 1, 0.01, 5, 2, 5, 5))
    assert before != await engine.counts() == counts.snapshot()
    assert await engine.close()


@pytest.mark.parametrize("kind", CLIENTS)
async def test_an_engine_that_counts_nothing_says_so(kind: str) -> None:
    engine = await CLIENTS[kind](thread())
    assert await engine.counts() == MetricsSnapshot()
    assert await engine.close()


async def test_what_is_known_stays_where_an_engine_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_client, "COUNTS_SECONDS", 0.05)
    known, go_on = MetricsSnapshot((("a", ("b",), (1.0,)),)), threading.Event()
    answers = itertools.count()

    def read(_: ReadMetrics) -> MetricsSnapshot:
        if next(answers):
            go_on.wait()
        return known

    engine = await over_a_socket(thread(), Operated({ReadMetrics: read}))
    assert await engine.counts() == known
    assert await engine.counts() == known
    go_on.set()
    assert await engine.close()
    assert await engine.counts() == known
