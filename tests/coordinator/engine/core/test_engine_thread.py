"""EngineThread: messages in, outputs out, in order, and an end that always comes. Conditions, no sleeps."""

import queue
import threading
from collections.abc import Iterator, Sequence

import pytest

from coordinator.engine.core.engine import Engine
from coordinator.engine.core.engine_thread import EngineThread
from coordinator.engine.messages.errors import EngineError
from coordinator.engine.messages.output import FinishReason, Output
from moe_model.errors import UserError
from tests.coordinator.engine.fakes import CountingRunner, GatedRunner, engine_over
from tests.models import make_request

WAIT = 30.0


class Harness:
    """A thread over an engine, and a queue of what it published."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.outputs: queue.Queue[Output] = queue.Queue()
        self.published_on: set[str] = set()
        self.stopped: list[EngineError] = []
        self.thread = EngineThread(engine)
        self.thread.start(self._publish, self.stopped.append)

    def _publish(self, outputs: Sequence[Output]) -> None:
        assert outputs, "an empty publication"
        self.published_on.add(threading.current_thread().name)
        for output in outputs:
            self.outputs.put(output)

    def next(self) -> Output:
        return self.outputs.get(timeout=WAIT)

    def until_last(self, request_id: str) -> tuple[list[int], Output]:
        tokens: list[int] = []
        while True:
            output = self.next()
            if output.request_id == request_id:
                tokens += output.token_ids
                if output.is_last:
                    return tokens, output


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def gated(runner: GatedRunner) -> Iterator[Harness]:
    harness = Harness(engine_over(runner))
    yield harness
    runner.permit(10_000)
    assert harness.thread.close(WAIT)


@pytest.fixture
def free() -> Iterator[Harness]:
    harness = Harness(engine_over(CountingRunner()))
    yield harness
    assert harness.thread.close(WAIT)


def test_runs_a_request_to_its_end(free: Harness) -> None:
    free.thread.submit(make_request("a", (1, 2, 3), 4))
    tokens, last = free.until_last("a")
    assert (tokens, last.finish_reason) == ([3, 4, 5, 6], FinishReason.LENGTH)
    assert free.published_on == {"engine"}


def test_stats_are_those_after_the_step_that_was_published(free: Harness) -> None:
    for _ in range(20):
        free.thread.submit(make_request("a", (1, 2, 3), 2))
        free.until_last("a")
        stats = free.thread.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.num_free_blocks == stats.num_blocks


def test_an_abort_takes_effect_before_the_next_step(gated: Harness, runner: GatedRunner) -> None:
    gated.thread.submit(make_request("a", (1, 2, 3), 9))
    assert runner.entered.acquire(timeout=WAIT)
    gated.thread.abort("a")
    runner.permit()
    first, last = gated.next(), gated.next()
    assert (list(first.token_ids), first.is_last) == ([3], False)
    assert (last.finish_reason, last.request_id) == (FinishReason.ABORT, "a")
    assert gated.thread.stats().num_free_blocks == gated.thread.stats().num_blocks
    assert len(runner.steps) == 1


def test_an_abort_that_comes_with_the_last_token_is_silent(gated: Harness, runner: GatedRunner) -> None:
    gated.thread.submit(make_request("a", max_tokens=1))
    assert runner.entered.acquire(timeout=WAIT)
    gated.thread.abort("a")
    gated.thread.abort("unknown")
    gated.thread.submit(make_request("b", max_tokens=1))
    runner.permit(2)
    assert gated.next().finish_reason is FinishReason.LENGTH
    assert gated.next().request_id == "b"


def test_commands_keep_their_order_so_that_an_id_can_be_used_again(
    gated: Harness, runner: GatedRunner
) -> None:
    gated.thread.submit(make_request("a", (1, 2, 3), 9))
    assert runner.entered.acquire(timeout=WAIT)
    gated.thread.abort("a")
    gated.thread.submit(make_request("a", (1,), 1))
    runner.permit(2)
    outputs = [gated.next() for _ in range(3)]
    assert [list(output.token_ids) for output in outputs] == [[3], [], [1]]
    assert [output.finish_reason for output in outputs] == [None, FinishReason.ABORT, FinishReason.LENGTH]


def test_a_request_that_cannot_be_taken_is_answered(free: Harness) -> None:
    free.thread.submit(make_request("a", ()))
    output = free.next()
    assert isinstance(output.error, UserError)
    assert output.is_last
    free.thread.submit(make_request("b", (1,), 1))
    assert free.until_last("b")[0] == [1]


def test_close_waits_for_the_step_and_leaves_no_thread(gated: Harness, runner: GatedRunner) -> None:
    gated.thread.submit(make_request("a"))
    assert runner.entered.acquire(timeout=WAIT)
    assert not gated.thread.close(timeout=0.01), "the step has not ended"
    runner.permit()
    assert gated.thread.close(WAIT)
    assert gated.thread.close(WAIT), "closing again does nothing"


def test_close_without_work_ends_at_once(free: Harness) -> None:
    assert free.thread.close(WAIT)


class BrokenScheduler(Engine):
    """An engine whose bookkeeping fails outside the model."""

    def step(self) -> list[Output]:
        raise AssertionError("a block has two owners")


def test_a_broken_engine_fails_all_requests_and_answers_new_ones(caplog: pytest.LogCaptureFixture) -> None:
    whole = engine_over(CountingRunner())
    harness = Harness(BrokenScheduler(whole._scheduler, CountingRunner(), 12))
    harness.thread.submit(make_request("a"))
    assert isinstance(harness.next().error, EngineError)
    harness.thread.submit(make_request("b"))
    assert isinstance(harness.next().error, EngineError)
    assert harness.thread.close(WAIT)
    assert "the engine has stopped" in caplog.text


def test_a_call_happens_between_two_steps_and_gives_what_it_returns_or_raises(
    gated: Harness, runner: GatedRunner
) -> None:
    gated.thread.submit(make_request("a", (1, 2, 3), 4))
    assert runner.entered.acquire(timeout=WAIT)
    number = gated.thread.call(lambda engine: engine.stats().num_steps)
    failure = gated.thread.call(lambda engine: ["nothing"][engine.stats().num_blocks])
    assert not number.done(), "a step runs"
    runner.permit(100)
    assert number.result(WAIT) == 1
    with pytest.raises(IndexError):
        failure.result(WAIT)
    assert gated.until_last("a")[0] == [3, 4, 5, 6]


def test_a_call_that_is_cancelled_in_time_never_happens(gated: Harness, runner: GatedRunner) -> None:
    called: list[Engine] = []
    gated.thread.submit(make_request("a", (1, 2, 3), 4))
    assert runner.entered.acquire(timeout=WAIT)
    assert gated.thread.call(called.append).cancel()
    runner.permit(100)
    gated.until_last("a")
    gated.thread.call(Engine.check_integrity).result(WAIT)
    assert called == []


def test_a_call_that_nobody_will_make_any_more_is_cancelled() -> None:
    runner = GatedRunner()
    harness = Harness(engine_over(runner))
    harness.thread.submit(make_request("a", (1, 2, 3), 4))
    assert runner.entered.acquire(timeout=WAIT)
    assert not harness.thread.close(0), "it is in a step"
    late = harness.thread.call(lambda engine: engine.stats())
    runner.permit(100)
    assert harness.thread.close(WAIT)
    assert late.cancelled()
    assert harness.thread.call(lambda engine: engine.stats()).cancelled()
