import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.errors import ConfigError
from scaling.planning.baselines import longest_first, round_robin, wrap_around
from scaling.planning.bound import bounds
from scaling.planning.exact import exact
from scaling.planning.greedy import greedy
from scaling.planning.loads import chances
from scaling.planning.problem import LacksRoomError, Problem
from scaling.planning.solve import EVEN, SIMPLE, solve
from scaling.routing.loads import zipf_loads
from tests.examples import examples
from tests.scaling.planning.problems import check_placement, make_problem, problems
from tests.scaling.planning.shapes import small_shape

SHORT = 0.05


@given(problems())
@settings(max_examples=examples(30))
def test_every_way_of_placing_keeps_copies_apart_and_memory(problem: Problem) -> None:
    for make in (round_robin, longest_first, wrap_around, greedy):
        check_placement(problem, make(problem))
    if (found := exact(problem, 0.2)) is not None:
        check_placement(problem, found.holders)


@given(problems())
@settings(max_examples=examples(15))
def test_a_plan_keeps_copies_and_memory_and_is_never_worse_than_the_simple_ones(problem: Problem) -> None:
    solution = solve(problem, seconds=SHORT)
    check_placement(problem, solution.holders)
    for name in SIMPLE:
        assert solution.seconds <= solution.others[name] * (1 + 1e-9)


@given(problems(num_slices=2))
@settings(max_examples=examples(10))
def test_slices_are_placed_one_by_one(problem: Problem) -> None:
    check_placement(problem, solve(problem, seconds=SHORT).holders)


@given(problems(), st.sampled_from([0.25, 2.0, 1024.0]))
@settings(max_examples=examples(15))
def test_as_much_quicker_as_the_workers_are(problem: Problem, factor: float) -> None:
    """Powers of two, which move no bit; the exact solver's own limits are of time."""
    quicker = problem.with_(table_KG=problem.table_KG / factor, start_M=problem.start_M / factor)
    for make in (round_robin, longest_first, greedy):
        assert make(quicker) == make(problem)
    assert bounds(quicker) * factor == pytest.approx(bounds(problem))
    assert quicker.fixed_rows == pytest.approx(problem.fixed_rows)
    assert quicker.costs() == pytest.approx(problem.costs())


def test_the_bound_is_what_even_workers_could_do_at_best() -> None:
    """Eight modules that all have every row: 12 us each, 96 us in all, over speeds 1 + 2 + 1."""
    problem = make_problem(np.ones((1, 8)), [1.0, 2.0, 1.0], [8, 8, 8])
    assert bounds(problem) == pytest.approx([24e-6])


def test_a_module_that_goes_to_one_worker_whole_bounds_too() -> None:
    """One module of 12 us: not less than on the quickest worker, however many there are."""
    problem = make_problem(np.ones((1, 1)), [1.0, 2.0, 1.0], [1, 1, 1])
    assert bounds(problem) == pytest.approx([6e-6])


@given(problems())
@settings(max_examples=examples(15))
def test_the_exact_solver_is_not_below_the_bound(problem: Problem) -> None:
    found = exact(problem, 0.5)
    if found is None:
        return
    for layer, (row, bound) in enumerate(zip(found.holders, bounds(problem), strict=True)):
        # The holders of a module share its rows alike: no better than the best shares.
        work_EM, taken_M = problem.work(layer), np.zeros(problem.num_workers)
        for expert, ranks in enumerate(row):
            for rank in ranks:
                taken_M[rank] += work_EM[expert, rank] / len(ranks)
        # What workers take in the mean hides that a step asks one of a module's holders for all of it.
        least = max(taken_M.max(), work_EM.min(axis=1).max())
        assert bound <= (least + problem.start_M.min()) * (1 + 1e-9)


def test_the_bound_is_not_that_of_holders_in_turns() -> None:
    """One row, of one of two experts: its holder takes all of it, and a second one is of no use then."""
    problem = make_problem(np.array([[0.7, 0.3]]), [1.0, 1.0], [1, 2], num_rows=1)
    one_row = problem.times(np.ones(1), np.zeros(1, np.int64))[0]
    assert bounds(problem) == pytest.approx([0.7 * one_row])


def test_the_exact_solver_finds_the_even_split() -> None:
    """Loads 5, 4, 3, 3, 3 on two workers are even only as 5 + 4 and 3 + 3 + 3; the rule gives 5 + 3 + 3."""
    chance_LE = np.array([[5, 4, 3, 3, 3]]) / 18
    problem = make_problem(chance_LE, [1.0, 1.0], [5, 5], num_rows=18, fixed=0.0)
    found = exact(problem, 5.0)
    assert found is not None
    assert found.gap <= 0.01
    (row,) = found.holders
    assert row[0] == row[1] != row[2] == row[3] == row[4]


def test_quick_workers_get_more() -> None:
    """Speeds 1:2:4, as much memory as is wanted: at least 1.25 times as quick as an even split, and near what
    the speeds in proportion could do."""
    shape = small_shape(num_layers=8, num_experts=32, top_k=4)
    chance_LE = chances(zipf_loads(shape, 1.2, 0), shape)
    problem = make_problem(chance_LE, [1.0, 2.0, 4.0], [200, 200, 200], num_rows=16, num_copies=2, fixed=8.0)
    solution = solve(problem, seconds=1.0)
    assert solution.others[EVEN] >= 1.25 * solution.seconds
    assert solution.bound_L.sum() >= 0.85 * solution.seconds


def test_what_is_lacking_is_said() -> None:
    problem = make_problem(np.full((2, 4), 0.5), [1.0, 1.0], [4, 3], num_copies=1)
    with pytest.raises(LacksRoomError, match="1 copies of experts do not fit") as raised:
        solve(problem)
    assert raised.value.num_lacking == 1
    with pytest.raises(ConfigError, match="3 copies of each expert need as many workers, there are 2"):
        solve(problem.with_(num_copies=3, room_M=np.array([99, 99])))


def test_one_worker_holds_all() -> None:
    problem = make_problem(np.full((2, 4), 0.5), [1.0], [8])
    assert solve(problem, seconds=SHORT).holders == [[(0,)] * 4] * 2


@pytest.mark.slow
def test_a_thousand_uneven_workers_are_planned_within_a_minute() -> None:
    """58 layers of 256 experts, 8 chosen; two copies each fill nine tenths of the memory."""
    shape = small_shape(num_layers=58, num_experts=256, top_k=8)
    rng = np.random.default_rng(0)
    speeds = rng.uniform(0.5, 4, 1000).tolist()
    room = rng.integers(10, 57, 1000)
    chance_LE = chances(zipf_loads(shape, 1.2, 0), shape)
    problem = make_problem(chance_LE, speeds, room.tolist(), num_rows=256, num_copies=2)
    began = time.monotonic()
    solution = solve(problem, seconds=15)
    took = time.monotonic() - began
    check_placement(problem, solution.holders)
    print(f"{took:.1f} s; {100 * solution.above_bound:.1f} % above the bound; {solution.others}")
    assert took <= 60
