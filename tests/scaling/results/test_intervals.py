"""Intervals over few rounds: what a second run's medians fall in, shown by simulation."""

from collections.abc import Callable
from math import exp, log
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scaling.results.intervals import (
    Variance,
    median_interval,
    median_variance,
    ratio_interval,
    repeat_interval,
    variances,
)

Drift = Callable[[np.random.Generator, int], NDArray[np.floating[Any]]]
DRIFTS: dict[str, Drift] = {
    "none": lambda random, rounds: np.zeros(rounds),
    # Each round is another: what else the machine does, its clock.
    "rounds": lambda random, rounds: random.normal(0, 0.03, rounds),
    # It gets slower, as a machine that heats up does, and so in each run.
    "slower": lambda random, rounds: -0.02 * np.arange(rounds),
}


def run(
    random: np.random.Generator,
    means_C: NDArray[np.floating[Any]],
    noise_C: NDArray[np.floating[Any]],
    drift: Drift,
    rounds: int,
) -> NDArray[np.floating[Any]]:
    """Measured values, [C, R]."""
    noise_CR = random.normal(0, 1, (len(means_C), rounds)) * noise_C[:, None]
    return np.exp(means_C[:, None] + drift(random, rounds)[None, :] + noise_CR)


def covered(num_cells: int, rounds: int, drift: Drift, runs: int, uneven: float = 0.4) -> tuple[float, float]:
    """The share of a second run's medians in the first one's intervals, and that of pairs of runs of which at
    least 95 % of the cells are."""
    random = np.random.default_rng(7)
    inside, pairs = 0, 0
    for _ in range(runs):
        means_C = random.normal(3, 1, num_cells)
        noise_C = 0.02 * np.exp(random.normal(0, uneven, num_cells))
        one_CR = run(random, means_C, noise_C, drift, rounds)
        other_CR = run(random, means_C, noise_C, drift, rounds)
        known = variances({str(c): dict(enumerate(row.tolist())) for c, row in enumerate(one_CR)})
        hits = 0
        for c in range(num_cells):
            found = repeat_interval(float(np.median(one_CR[c])), known[str(c)], rounds, rounds)
            hits += found.low <= float(np.median(other_CR[c])) <= found.high
        inside, pairs = inside + hits, pairs + (hits >= 0.95 * num_cells)
    return inside / (runs * num_cells), pairs / runs


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("rounds", [3, 5])
def test_a_second_run_s_medians_fall_in_the_intervals(drift: str, rounds: int) -> None:
    share, bar_met = covered(36, rounds, DRIFTS[drift], 25)
    assert share >= 0.95
    assert bar_met >= 0.8


@pytest.mark.parametrize("num_cells", [1, 4])
def test_few_cells_are_enough(num_cells: int) -> None:
    assert covered(num_cells, 5, DRIFTS["rounds"], 60)[0] >= 0.95


def test_a_bootstrap_of_three_rounds_is_too_narrow_for_that() -> None:
    """The reason for intervals of another kind."""
    random, inside = np.random.default_rng(3), 0
    for _ in range(100):
        one, other = random.normal(100, 2, 3), random.normal(100, 2, 3)
        found = median_interval(one.tolist())
        assert found is not None
        inside += found.low <= float(np.median(other)) <= found.high
    assert inside < 90


def test_intervals_are_not_wider_than_the_noise_asks_for() -> None:
    """Thirty cells of 2 % noise: ± 2.6 standard deviations of the difference of two medians, a bit more."""
    random = np.random.default_rng(1)
    rows = np.exp(random.normal(5, 0.02, (30, 5)))
    known = variances({str(c): dict(enumerate(row.tolist())) for c, row in enumerate(rows)})
    halves = [log(repeat_interval(1.0, known[str(c)], 5, 5).high) for c in range(30)]
    expected = 2.58 * 0.02 * (2 * median_variance(5)) ** 0.5
    assert 0.8 * expected < median(halves) < 1.6 * expected


def test_what_moves_all_cells_of_a_round_counts_as_drift() -> None:
    values = {
        str(c): {r: exp(c + 0.1 * r + 0.001 * ((c * 7 + r * 3) % 5)) for r in range(5)} for c in range(9)
    }
    for found in variances(values).values():
        assert found.shared == pytest.approx(0.025, rel=0.05)
        assert found.own < 1e-5
        assert found.shared_df == 4


def test_a_cell_of_one_round_gets_what_the_others_know() -> None:
    values = {"a": {0: 10.0, 1: 11.0, 2: 10.5}, "b": {0: 20.0, 1: 20.5, 2: 21.5}, "c": {0: 5.0}}
    found = variances(values)
    assert found["c"].own > 0
    assert variances({"c": {0: 5.0}}) == {}
    assert variances({"a": values["a"], "c": values["c"]})["c"].own == pytest.approx(
        variances({"a": values["a"]})["a"].own
    )


def test_a_noisy_cell_keeps_a_wider_interval_than_a_quiet_one() -> None:
    random = np.random.default_rng(5)
    noise = [0.002 if c % 2 else 0.1 for c in range(20)]
    values = {str(c): dict(enumerate(np.exp(random.normal(3, noise[c], 6)).tolist())) for c in range(20)}
    found = variances(values)
    loud, quiet = (median(found[str(c)].own for c in range(first, 20, 2)) for first in (0, 1))
    assert loud > 1.5 * quiet


def test_one_round_has_no_interval_of_its_own() -> None:
    assert median_interval([3.0]) is None


def test_equal_rounds_still_get_a_tenth_of_a_percent() -> None:
    known = variances({str(c): {0: 7.0, 1: 7.0, 2: 7.0} for c in range(3)})
    found = repeat_interval(7.0, known["0"], 3, 3)
    assert found.low < 7.0 * 0.9991
    assert found.high > 7.0 * 1.0009


def test_the_variance_of_a_median_is_that_of_order_statistics() -> None:
    """Of 3 and 5 normal values: 0.4487 and 0.2868 (Sarhan and Greenberg 1962, table 10C.1)."""
    assert median_variance(1) == 1
    assert median_variance(3) == pytest.approx(0.4487, rel=0.03)
    assert median_variance(5) == pytest.approx(0.2868, rel=0.03)


POSITIVE = st.floats(1e-3, 1e6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(POSITIVE, min_size=1, max_size=5), min_size=1, max_size=6), st.floats(0.1, 10))
def test_another_unit_changes_no_interval_s_shape(rows: list[list[float]], factor: float) -> None:
    one = variances({str(c): dict(enumerate(row)) for c, row in enumerate(rows)})
    other = variances({str(c): {r: factor * v for r, v in enumerate(row)} for c, row in enumerate(rows)})
    assert one.keys() == other.keys()
    for key, found in one.items():
        left, right = repeat_interval(1.0, found, 3, 3), repeat_interval(factor, other[key], 3, 3)
        assert left.low <= 1 <= left.high
        assert right.high / factor == pytest.approx(left.high, rel=1e-3)


@settings(max_examples=40, deadline=None)
@example(1.0, 1.0, 1e-300, 0.0)
@given(POSITIVE, POSITIVE, st.floats(0, 0.1), st.floats(0, 0.1))
def test_a_ratio_the_other_way_round_has_the_inverse_interval(
    a: float, b: float, own: float, shared: float
) -> None:
    both = (Variance(own, 9.0, shared, 4.0), Variance(shared, 5.0, own, 2.0))
    there, back = ratio_interval(a, b, both, (3, 5)), ratio_interval(b, a, both[::-1], (5, 3))
    assert there.low <= b / a <= there.high
    assert back.low == pytest.approx(1 / there.high)
    assert back.high == pytest.approx(1 / there.low)
