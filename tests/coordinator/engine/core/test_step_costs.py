"""StepCosts: what it says of steps that it has not seen is near what they take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.core.step_costs import MAX_KINDS, StepCosts, StepLoad, positions_seen
from tests.coordinator.engine.core.machines import linear, noisy

PRICE = st.floats(1e-6, 1.0)


def loads(num_singles: int, context: int) -> list[StepLoad]:
    """Decoding, and chunks of several lengths at several places beside it."""
    singles = StepLoad.of((context, 1) for _ in range(num_singles))
    chunks = [(0, 32), (0, 300), (400, 100), (2000, 64), (3000, 200)]
    return [singles, *(singles.with_prefill(start, count) for start, count in chunks)]


@given(st.integers(0, 100), st.integers(1, 50))
def test_positions_are_those_of_each_token_and_all_before_it(start: int, num_tokens: int) -> None:
    assert positions_seen(start, num_tokens) == sum(start + i + 1 for i in range(num_tokens))


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 9)), max_size=8))
def test_a_load_is_the_sum_of_its_chunks(chunks: list[tuple[int, int]]) -> None:
    load = StepLoad.of(chunks)
    singles = [start for start, count in chunks if count == 1]
    longer = [(start, count) for start, count in chunks if count > 1]
    assert (load.singles, load.singles_seen) == (len(singles), sum(start + 1 for start in singles))
    added = StepLoad.of((start, 1) for start in singles)
    for start, count in longer:
        added = added.with_prefill(start, count)
    assert load == added


@given(PRICE, PRICE, PRICE, st.floats(1e-9, 1e-3))
def test_a_linear_machine_is_found_out(step: float, single: float, token: float, position: float) -> None:
    """Whatever its prices are: seconds or microseconds, per step or per token."""
    machine, costs = linear(step, single, token, position), StepCosts()
    for _ in range(30):
        for load in [*loads(16, 50), *loads(1, 900), *loads(0, 0)[1:]]:
            costs.observe(load, machine(load))
        # Each working out begins where the one before ended.
        costs.seconds(load)
    for load in loads(8, 200):
        assert costs.seconds(load) == pytest.approx(machine(load), rel=0.1)


def test_what_comes_seldom_is_not_forgotten_while_others_decode() -> None:
    machine, costs = linear(4e-3, 4e-4, 2e-4, 1e-7), StepCosts()
    for load in loads(4, 100) * 3:
        costs.observe(load, machine(load))
    for context in range(5000):
        load = StepLoad.of((100 + context, 1) for _ in range(4))
        costs.observe(load, machine(load))
    load = StepLoad.of([(5100, 1)] * 4).with_prefill(1000, 128)
    assert costs.seconds(load) == pytest.approx(machine(load), rel=0.1)


def test_a_machine_that_becomes_slower_is_believed_and_a_pause_is_not() -> None:
    load, costs = StepLoad.of([(100, 1)] * 4).with_prefill(0, 100), StepCosts()
    for _ in range(20):
        costs.observe(load, 0.02)
    costs.observe(load, 5.0)
    assert costs.seconds(load) < 0.03
    for _ in range(40):
        costs.observe(load, 0.06)
    assert costs.seconds(load) == pytest.approx(0.06, rel=0.05)


def test_a_first_step_that_was_slow_is_not_believed_for_long() -> None:
    """It is all that is known of its kind then: what comes next counts at once."""
    costs, load = StepCosts(), StepLoad(16, 1600, 512, 65536)
    costs.observe(load, 2.0)
    assert costs.seconds(load) == pytest.approx(2.0, rel=0.01)
    for _ in range(6):
        costs.observe(load, 0.05)
        costs.seconds(load)
    assert costs.seconds(load) < 0.5


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 9000), st.integers(0, 600)), max_size=200))
def test_any_history_is_kept_in_little_and_says_numbers_that_are_not_negative(
    history: list[tuple[int, int, int]],
) -> None:
    costs, machine = StepCosts(), noisy(linear(1e-3, 1e-4, 1e-4, 1e-8), 1, deviation=1.0)
    for singles, start, num_tokens in history:
        load = StepLoad.of([(start, 1)] * singles).with_prefill(start, num_tokens)
        costs.observe(load, machine(load))
        assert 0 <= costs.seconds(load) < 1e3
        assert min(costs.per_token, costs.per_position) >= 0
    assert len(costs._kinds) <= MAX_KINDS
