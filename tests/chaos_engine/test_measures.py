"""Waits and rates, during the faults and outside."""

import pytest

from chaos.measures import BOUNDS, Windows, histogram, measure, merged, percentile, spread
from tests.chaos_engine.histories import stream


def test_windows_that_touch_become_one() -> None:
    assert merged([(5.0, 6.0), (1.0, 2.0), (1.5, 3.0), (3.0, 4.0)]) == [(1.0, 4.0), (5.0, 6.0)]


@pytest.mark.parametrize(
    ("begin", "end", "touches"),
    [
        (0.0, 0.9, False),
        (0.0, 1.0, True),
        (1.2, 1.3, True),
        (2.0, 3.0, True),
        (2.1, 4.9, False),
        (0, 9, True),
    ],
)
def test_a_wait_that_has_a_part_in_a_window(begin: float, end: float, touches: bool) -> None:
    assert Windows([(1.0, 2.0), (5.0, 6.0)]).touches(begin, end) is touches


def test_seconds_of_the_windows() -> None:
    windows = Windows([(1.0, 2.0), (5.0, 9.0)])
    assert windows.seconds(0.0, 10.0) == pytest.approx(5.0)
    assert windows.seconds(1.5, 6.0) == pytest.approx(1.5)
    assert Windows([]).seconds(0.0, 10.0) == 0.0


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert spread([]).longest is None
    assert spread([3.0, 1.0]).longest == 3.0


def test_every_gap_is_in_one_row() -> None:
    counts = histogram([0.001, BOUNDS[0], 0.0051, 99.0])
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 1, 4)


def test_a_gap_during_a_fault_is_not_counted_outside() -> None:
    """Tokens at 0.1, 0.2, 0.3, 0.4 and at 10.5, 11.0, 11.5, 12.0; a fault from 10.7 to 10.8."""
    streams = [stream(), stream(due=10.0, step=0.5)]
    during, outside = measure(streams, Windows([(10.7, 10.8)]), (0.0, 20.0))
    assert during.gaps.count == 1
    assert during.gaps.longest == pytest.approx(0.5)
    assert outside.gaps.count == 5
    assert outside.first_tokens.count == 2
    assert during.tokens_per_second == 0.0
    assert outside.tokens_per_second == pytest.approx(8 / 19.9)


def test_without_a_fault_there_is_nothing_during_one() -> None:
    during, _ = measure([stream()], Windows([]), (0.0, 1.0))
    assert during.gaps.count == 0
    assert during.tokens_per_second is None
