"""How long a sweep still takes: guessed at first, then as long as what was measured."""

from collections.abc import Callable

import pytest

from scaling.cell import Cell, Load
from scaling.sweep.estimate import PASS, Remaining, load_seconds, said, start_seconds, turn_seconds
from scaling.sweep.rounds import Turn, turns

ONE, TWO = (Cell(model="m", workers=workers, load=Load(concurrency=8)) for workers in (1, 2))
BOTH = {cell.key: cell for cell in (ONE, TWO)}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def play(
    left: Remaining, clock: Clock, turn: Turn, start: Callable[[Cell], float], load: Callable[[Cell], float]
) -> None:
    left.turn(turn)
    clock.now += start(turn.cells[0])
    for cell in turn.cells:
        left.load(cell)
        clock.now += load(cell)
        left.done(cell.key)


def test_first_it_is_a_guess() -> None:
    found = list(turns(BOTH, 3, 0, set()))
    assert Remaining(found, clock=Clock()).seconds == pytest.approx(sum(map(turn_seconds, found)))
    assert Remaining([], clock=Clock()).seconds == 0


def test_a_slow_start_leaves_what_comes_after_it() -> None:
    """The server takes longer than all that was guessed of the whole sweep."""
    found, clock = list(turns(BOTH, 1, 0, set())), Clock()
    left = Remaining(found, clock=clock)
    first, second = (turn.cells[0] for turn in found)
    left.turn(found[0])
    clock.now += 300
    waits = load_seconds(first) + turn_seconds(found[1])
    assert left.seconds > waits
    left.load(first)
    slow = 300 / start_seconds(first)
    expected = load_seconds(first) + load_seconds(second) + slow * start_seconds(second)
    assert left.seconds == pytest.approx(expected)


def test_a_slow_load_of_the_last_run_is_not_over() -> None:
    turn, clock = Turn(0, (ONE,)), Clock()
    left = Remaining([turn], clock=clock)
    left.turn(turn)
    left.load(ONE)
    before = load_seconds(ONE)
    for _ in range(9):
        clock.now += before
        assert left.seconds >= 1
        assert said(left.seconds) != "0 s"
    left.done(ONE.key)
    assert left.seconds == 0


def test_what_ran_is_expected_to_take_as_long_again() -> None:
    found, clock = list(turns(BOTH, 2, 0, set())), Clock()
    left = Remaining(found, clock=clock)
    starts, loads = {ONE.key: 40.0, TWO.key: 7.0}, {ONE.key: 3.0, TWO.key: 90.0}
    for turn in found[:2]:
        play(left, clock, turn, lambda cell: starts[cell.key], lambda cell: loads[cell.key])
    left.turn(found[2])
    # The time of a server is known when the next turn begins.
    assert left.seconds == pytest.approx(sum(starts.values()) + sum(loads.values()))


def test_what_has_not_run_is_guessed_as_far_off_as_what_has() -> None:
    found, clock = list(turns(BOTH, 1, 0, set())), Clock()
    left = Remaining(found, clock=clock)
    play(left, clock, found[0], lambda cell: 3 * start_seconds(cell), lambda cell: load_seconds(cell) / 2)
    left.turn(found[1])
    [cell] = found[1].cells
    assert left.seconds == pytest.approx(3 * start_seconds(cell) + load_seconds(cell) / 2)


def test_a_server_that_fails_leaves_no_run_of_its_turn() -> None:
    found, clock = list(turns(BOTH, 1, 0, set())), Clock()
    left = Remaining(found, clock=clock)
    left.turn(found[0])
    clock.now += start_seconds(found[0].cells[0])
    for cell in found[0].cells:
        left.done(cell.key)
    left.turn(found[1])
    assert left.seconds == pytest.approx(turn_seconds(found[1]))


def test_passes_of_the_probe_are_counted_and_no_server_s_time() -> None:
    found, clock = list(turns(BOTH, 1, 0, set())), Clock()
    left = Remaining(found, 2, clock)
    assert left.seconds == pytest.approx(2 * PASS + sum(map(turn_seconds, found)))
    left.probing()
    clock.now += 100
    assert left.seconds == pytest.approx(2 * PASS - 100 + sum(map(turn_seconds, found)))
    clock.now += 200
    play(left, clock, found[0], start_seconds, load_seconds)
    # The first server's end may still take a moment.
    assert left.seconds == pytest.approx(300 + turn_seconds(found[1]), abs=2)
    play(left, clock, found[1], start_seconds, load_seconds)
    left.probing()
    clock.now += 60
    assert left.seconds == pytest.approx(240, abs=2)
