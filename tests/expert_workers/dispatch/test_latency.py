import random

import pytest

from expert_workers.dispatch.latency import FORGIVENESS, Latency, Quantile


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_a_quantile_is_followed_whatever_the_scale(p: float) -> None:
    for scale in (1e-6, 1.0, 1e4):
        generator = random.Random(3)
        quantile, values = Quantile(p), [scale * generator.uniform(1, 2) for _ in range(5000)]
        for value in values:
            quantile.add(value)
        assert quantile.value == pytest.approx(scale * (1 + p), rel=0.1)


def test_one_odd_beginning_does_not_stay() -> None:
    quantile = Quantile(0.5)
    for value in (100.0, *[1.0] * 60):
        quantile.add(value)
    assert quantile.value < 2.0


def test_what_is_usual_is_known_after_some_calls_of_that_size() -> None:
    latency = Latency()
    for number in range(30):
        assert latency.usual(8) is None or number >= 20
        latency.add(0, 8, 0.002, 0.0)
    assert latency.usual(8) == pytest.approx(0.002, rel=0.1)
    assert latency.usual(9) == latency.usual(15) == latency.usual(8)
    assert latency.usual(100) == pytest.approx(8 * 0.002, rel=0.1), (
        "no more than its rows one after the other"
    )


def test_one_slow_worker_of_three_does_not_change_what_is_usual() -> None:
    latency = Latency()
    for _ in range(100):
        for rank, seconds in ((0, 0.001), (1, 0.001), (2, 0.2)):
            latency.add(rank, 4, seconds, 0.0)
    usual = latency.usual(4)
    assert usual is not None
    assert usual < 0.01


def test_the_slower_worker_costs_more_and_equal_ones_the_same() -> None:
    latency = Latency()
    for _ in range(50):
        for rank, seconds in ((0, 0.001), (1, 0.0011), (2, 0.004)):
            latency.add(rank, 4, seconds, 0.0)
    costs = latency.costs([0, 1, 2], 0.0)
    assert costs[0] == costs[1] == 1.0
    assert 3.0 < costs[2] < 5.0


def test_a_worker_that_was_not_asked_for_a_while_is_tried_again() -> None:
    latency = Latency()
    for _ in range(50):
        latency.add(0, 4, 0.001, 0.0)
        latency.add(1, 4, 0.1, 0.0)
    costs = [latency.costs([0, 1], now)[1] for now in (0.0, FORGIVENESS, 20 * FORGIVENESS)]
    assert costs[0] > costs[1] > costs[2] == 1.0


def test_another_process_of_the_same_rank_is_judged_anew() -> None:
    latency = Latency()
    for _ in range(50):
        latency.add(0, 4, 0.001, 0.0)
        latency.add(1, 4, 0.1, 0.0)
    latency.forget(1)
    assert latency.costs([0, 1], 0.0) == {0: 1.0, 1: 1.0}


def test_a_slow_worker_that_gets_small_calls_is_not_their_measure() -> None:
    latency = Latency()
    for _ in range(50):
        latency.add(0, 32, 0.001, 0.0)
        latency.add(1, 4, 0.01, 0.0)
    assert latency.costs([0, 1], 0.0)[1] > 5.0
    assert latency.usual(4) == pytest.approx(0.001, rel=0.1)


def test_workers_that_are_as_quick_as_planned_are_as_quick_as_each_other() -> None:
    """The slow one gets few rows, and takes as long for these as the quick one for many."""
    latency = Latency({0: 1.0, 1: 4.0})
    for n in range(100):
        latency.add(0, 8, 0.010, float(n))
        latency.add(1, 2, 0.010, float(n))
    assert latency.costs([0, 1], 100.0) == {0: 1.0, 1: 1.0}
    # What is usual allows for the slowest.
    usual = latency.usual(8)
    assert usual is not None
    assert usual >= 0.040 * 0.9


def test_a_worker_that_is_far_off_its_plan_costs_more() -> None:
    latency = Latency({0: 1.0, 1: 4.0})
    for n in range(100):
        latency.add(0, 8, 0.010, float(n))
        latency.add(1, 8, 0.400, float(n))
    costs = latency.costs([0, 1], 100.0)
    assert costs[0] == 1.0
    assert costs[1] > 3.0


def test_what_is_forgiven_stays_forgiven() -> None:
    """A worker that was slow once, by far, is tried now and then; when it is quick then, it is used again."""
    latency = Latency()
    for _ in range(50):
        latency.add(0, 4, 0.001, 0.0)
    latency.add(1, 4, 0.3, 0.0)
    now = 0.0
    while latency.costs([0, 1], now)[1] > 8.0:
        now += 0.1
    for _ in range(10):
        latency.add(0, 4, 0.001, now)
        latency.add(1, 4, 0.001, now)
    assert latency.costs([0, 1], now)[1] < 3.0
