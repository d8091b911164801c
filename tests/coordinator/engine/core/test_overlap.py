"""How many parts a step has: what was measured to be faster, per size, tried again from time to time."""

import pytest

from coordinator.engine.core.overlap import NUM_BETWEEN, NUM_TRIED, Overlap


class Clock:
    """Time passes as a step with so many parts takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    overlap: Overlap, clock: Clock, seconds: dict[int, float], num_steps: int, num_tokens: int = 32
) -> list[int]:
    used = []
    for _ in range(num_steps):
        with overlap.timed(num_tokens) as num_parts:
            used.append(num_parts)
            clock.now += seconds[num_parts]
    return used


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("seconds", "best"), [({1: 1.0, 2: 0.8}, 2), ({1: 1.0, 2: 1.2}, 1), ({1: 1.0, 2: 0.99}, 1)]
)
def test_takes_what_is_faster_by_more_than_noise(clock: Clock, seconds: dict[int, float], best: int) -> None:
    overlap = Overlap(clock=clock)
    tried = run(overlap, clock, seconds, 2 * NUM_TRIED)
    assert tried == [1, 2] * NUM_TRIED
    assert run(overlap, clock, seconds, 50) == [best] * 50
    assert overlap.chosen(32) == best


def test_changes_its_mind_when_the_machines_change(clock: Clock) -> None:
    overlap = Overlap(clock=clock)
    run(overlap, clock, {1: 1.0, 2: 0.5}, NUM_BETWEEN)
    assert overlap.chosen(32) == 2
    run(overlap, clock, {1: 1.0, 2: 1.5}, 2 * NUM_TRIED)
    assert overlap.chosen(32) == 1


def test_sizes_are_measured_by_themselves(clock: Clock) -> None:
    overlap = Overlap(clock=clock)
    run(overlap, clock, {1: 1.0, 2: 0.5}, 2 * NUM_TRIED, num_tokens=64)
    run(overlap, clock, {1: 1.0, 2: 2.0}, 2 * NUM_TRIED, num_tokens=8)
    assert (overlap.chosen(64), overlap.chosen(100), overlap.chosen(8)) == (2, 2, 1)


def test_single_tokens_are_not_cut_and_a_number_is_what_is_used(clock: Clock) -> None:
    assert set(run(Overlap(clock=clock), clock, {1: 1.0, 2: 0.1}, 40, num_tokens=1)) == {1}
    assert set(run(Overlap(2, clock), clock, {1: 1.0, 2: 9.0}, 40)) == {2}


def test_a_step_that_raises_is_not_counted(clock: Clock) -> None:
    overlap = Overlap(clock=clock)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="lost"), overlap.timed(32):
            raise RuntimeError("lost")
    assert run(overlap, clock, {1: 1.0, 2: 1.0}, 2) == [1, 2]
