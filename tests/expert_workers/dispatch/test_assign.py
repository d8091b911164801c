from hypothesis import given
from hypothesis import strategies as st

from expert_workers.dispatch.assign import Segments, assign

EVEN = {0: 1.0, 1: 1.0, 2: 1.0}


@st.composite
def columns(draw: st.DrawFn, max_rows: int = 9) -> tuple[list[tuple[int, ...]], list[int]]:
    """Holders, perhaps none, and rows, perhaps none, of a few columns."""
    num = draw(st.integers(0, 8))
    ranks = st.lists(st.integers(0, 4), max_size=4, unique=True).map(tuple)
    holders = draw(st.lists(ranks, min_size=num, max_size=num))
    return holders, draw(st.lists(st.integers(0, max_rows), min_size=num, max_size=num))


costs_of_some = st.dictionaries(st.integers(0, 4), st.floats(0.1, 10))


def rows_of(segments: dict[int, Segments]) -> dict[int, int]:
    return {rank: sum(rows for _, rows in parts) for rank, parts in segments.items()}


@given(columns(), costs_of_some)
def test_each_column_with_rows_goes_whole_to_one_usable_holder_or_is_lost(
    drawn: tuple[list[tuple[int, ...]], list[int]], costs: dict[int, float]
) -> None:
    holders, counts = drawn
    segments, lost = assign(holders, counts, costs)
    given_out = sorted(segment for parts in segments.values() for segment in parts)
    lost_ones = [(column, counts[column]) for column in lost]
    assert sorted(given_out + lost_ones) == [(c, rows) for c, rows in enumerate(counts) if rows]
    assert lost == [c for c, rows in enumerate(counts) if rows and not set(holders[c]) & set(costs)]
    for rank, parts in segments.items():
        assert rank in costs
        assert all(rank in holders[column] for column, _ in parts)


@given(columns(), costs_of_some)
def test_ranks_and_columns_are_sorted(
    drawn: tuple[list[tuple[int, ...]], list[int]], costs: dict[int, float]
) -> None:
    segments, _ = assign(*drawn, costs)
    assert list(segments) == sorted(segments)
    assert all(parts == sorted(parts) and parts for parts in segments.values())


@given(columns(), st.permutations(range(5)))
def test_the_order_of_holders_and_costs_does_not_matter(
    drawn: tuple[list[tuple[int, ...]], list[int]], order: list[int]
) -> None:
    holders, counts = drawn
    shuffled = [tuple(rank for rank in order if rank in ranks) for ranks in holders]
    assert assign(holders, counts, dict.fromkeys(range(5), 1.0)) == assign(
        shuffled, counts, dict.fromkeys(order, 1.0)
    )


def test_the_largest_goes_first_and_each_to_the_least_loaded() -> None:
    segments, lost = assign([(0, 1), (1, 0), (0, 1)], [2, 5, 4], EVEN)
    assert segments == {0: [(1, 5)], 1: [(0, 2), (2, 4)]}
    assert lost == []


def test_columns_without_a_choice_are_reckoned_with_before_those_that_have_one() -> None:
    segments, _ = assign([(0, 1), (0,), (0, 2)], [3, 9, 8], {0: 1.0, 1: 1.0})
    assert segments == {0: [(1, 9), (2, 8)], 1: [(0, 3)]}


def test_without_a_choice_the_costs_decide_nothing() -> None:
    segments, _ = assign([(1,), (0,), (1,)], [1, 0, 3], {0: 1.0, 1: 99.0})
    assert segments == {1: [(0, 1), (2, 3)]}


def test_a_worker_at_four_times_the_cost_gets_a_quarter_of_the_rows() -> None:
    rows = rows_of(assign([(0, 1)] * 50, [3] * 50, {0: 1.0, 1: 4.0})[0])
    assert rows[0] + rows[1] == 150
    assert abs(rows[0] - 4 * rows[1]) <= 4 * 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(2, 3))
def test_the_slowest_is_within_a_column_of_the_mean(counts: list[int], num_workers: int) -> None:
    everywhere = [tuple(range(num_workers))] * len(counts)
    rows = rows_of(assign(everywhere, counts, dict.fromkeys(range(num_workers), 1.0))[0])
    # Graham's bound of the greedy schedule, largest first.
    least = max(max(counts), sum(counts) / num_workers)
    assert max(rows.values()) <= (4 / 3) * least + max(counts) / 3


def test_nothing_to_do_is_nothing() -> None:
    assert assign([], [], EVEN) == ({}, [])
    assert assign([(0,), ()], [0, 0], EVEN) == ({}, [])


@given(columns(), costs_of_some)
def test_no_fixed_rows_change_nothing(
    drawn: tuple[list[tuple[int, ...]], list[int]], costs: dict[int, float]
) -> None:
    assert assign(*drawn, costs) == assign(*drawn, costs, 0.0)


def test_that_a_column_has_rows_may_cost_more_than_its_rows() -> None:
    """By rows alone the first worker has one column and the other three; with a fixed part, two each."""
    holders, counts, costs = [(0, 1)] * 4, [9, 3, 3, 3], {0: 1.0, 1: 1.0}
    by_rows, _ = assign(holders, counts, costs)
    assert [len(by_rows[rank]) for rank in (0, 1)] == [1, 3]
    with_fixed, _ = assign(holders, counts, costs, 100.0)
    assert [len(with_fixed[rank]) for rank in (0, 1)] == [2, 2]
