"""What an engine counts of its steps, its workers' calls, and their losses."""

import statistics
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.messages.codec import decode, encode
from coordinator.engine.messages.records import StepRecord
from coordinator.engine.telemetry import counts
from coordinator.engine.telemetry.counts import REASONS, EngineCounts
from coordinator.metrics.of_engine import FAMILIES
from expert_workers.transports.base import FailureReason

STEP = StepRecord(0, 1, 0.01, 5, 2, 5, 5)
DECODE = StepRecord(0, 1, 0.01, 5, 0, 5, 5, num_draft_tokens=4, num_accepted_tokens=3)


def dispatch(rows: dict[int, int], compute_seconds: dict[int, float], **more: Any) -> SimpleNamespace:
    said = {"seconds": 0.01, "combine_seconds": 0.001, "bytes_sent": 10, "bytes_received": 20}
    return SimpleNamespace(
        rows=rows, compute_seconds=compute_seconds, **({**said, "retries": {}, "num_hedged": 0} | more)
    )


def opened(*ranks: int) -> EngineCounts:
    engine = EngineCounts()
    engine.open(ranks)
    return engine


def values(engine: EngineCounts, stem: str, *labels: str) -> tuple[float, ...]:
    [found] = [
        numbers
        for name, given_labels, numbers in engine.snapshot().series
        if (name, given_labels) == (f"expertmesh_{stem}", labels)
    ]
    return found


def count_and_sum(numbers: tuple[float, ...]) -> tuple[float, float]:
    return sum(numbers[:-1]), numbers[-1]


def test_warming_up_does_not_count() -> None:
    engine = EngineCounts()
    engine.dispatched([dispatch({0: 3}, {0: 0.1}, retries={FailureReason.LATE: 1}, num_hedged=1)])
    engine.step(STEP)
    engine.lost(0, FailureReason.DIED)
    engine.restarted(0, FailureReason.DIED)
    engine.rebalanced(3, 0.1)
    engine.open([0])
    engine.step(STEP)
    assert count_and_sum(values(engine, "step_seconds", "prefill")) == (1, 0.01)
    others = [n for name, _, n in engine.snapshot().series if name.startswith("expertmesh_expert")]
    assert {number for numbers in others for number in numbers} == {0.0}


def test_a_step_and_its_dispatches() -> None:
    engine = opened(0, 1)
    engine.dispatched([dispatch({0: 3, 1: 1}, {0: 0.004, 1: 0.002})])
    engine.dispatched([dispatch({0: 1, 1: 1}, {0: 0.004, 1: 0.002})])
    engine.step(DECODE)
    engine.step(STEP)
    assert count_and_sum(values(engine, "iteration_tokens")) == (2, 10)
    assert count_and_sum(values(engine, "step_seconds", "decode")) == (1, 0.01)
    assert values(engine, "spec_decode_num_draft_tokens") == (4.0,)
    assert values(engine, "spec_decode_num_accepted_tokens") == (3.0,)
    # 6 pairs, 3 a worker on the mean, 4 at most; the second step had none.
    assert count_and_sum(values(engine, "expert_balancedness", "decode")) == (1, 0.75)
    assert count_and_sum(values(engine, "expert_balancedness", "prefill")) == (0, 0)
    assert (values(engine, "expert_tokens", "0"), values(engine, "expert_tokens", "1")) == ((4.0,), (2.0,))
    assert values(engine, "expert_bytes", "dispatch") == (20.0,)
    assert values(engine, "expert_bytes", "combine") == (40.0,)
    assert count_and_sum(values(engine, "expert_straggler_seconds")) == pytest.approx((2, 0.002))
    assert count_and_sum(values(engine, "expert_compute_seconds", "0")) == pytest.approx((2, 0.008))


def test_calls_that_went_wrong() -> None:
    engine = opened(0)
    engine.dispatched([dispatch({0: 1}, {0: 0.1}, retries={FailureReason.LATE: 2}, num_hedged=3)])
    engine.lost(0, FailureReason.DIED)
    engine.restarted(0, FailureReason.DIED)
    engine.rebalanced(5, 0.25)
    assert values(engine, "expert_retries", "late") == (2.0,)
    assert values(engine, "expert_hedges") == (3.0,)
    assert values(engine, "expert_worker_losses", "died") == (1.0,)
    assert values(engine, "expert_worker_restarts", "died") == (1.0,)
    assert values(engine, "expert_rebalances") == (1.0,)
    assert count_and_sum(values(engine, "expert_rebalance_seconds")) == (1, 0.25)


def test_every_reason_has_a_series_at_once() -> None:
    assert set(REASONS) == {reason.value for reason in FailureReason}
    assert values(opened(), "expert_worker_losses", "oom") == (0.0,)


def test_a_worker_that_comes_later_gets_series_of_its_own() -> None:
    engine = opened(0)
    engine.dispatched([dispatch({7: 2}, {7: 0.1})])
    assert values(engine, "expert_tokens", "7") == (2.0,)


def test_what_is_counted_is_what_there_are_families_of() -> None:
    engine = opened(0)
    # Of the routing only where it is recorded.
    engine.recorded(1, is_written=True)
    assert {name for name, _, _ in engine.snapshot().series} == {family.name for family in FAMILIES}
    assert decode(encode(engine.snapshot())) == engine.snapshot()


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=9))
def test_the_median_is_the_libraries(times: list[float]) -> None:
    assert counts._median(times) == statistics.median(times)
