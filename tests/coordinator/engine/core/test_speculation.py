"""Whether sequences draft: where it was measured to pay, by number of sequences, not after a failure."""

import random
from dataclasses import dataclass, field

import pytest

from coordinator.engine.core.speculation import (
    MOST_BETWEEN,
    NUM_AFTER_FAILURE,
    NUM_BETWEEN,
    NUM_TRIED,
    Speculation,
)


@dataclass
class Machine:
    """How long a step takes with drafts and without, and how many tokens each sequence gets with them."""

    plain: float = 1.0
    drafted: float = 1.2
    gain: float = 2.0
    finds: bool = True
    used: list[bool] = field(default_factory=list)

    def run(self, speculation: Speculation, num_steps: int, num_sequences: int = 4) -> list[bool]:
        for _ in range(num_steps):
            is_drafted = speculation.wanted(num_sequences) and self.finds
            num_tokens = round(num_sequences * (self.gain if is_drafted else 1))
            seconds = self.drafted if is_drafted else self.plain
            speculation.ran(num_sequences, num_tokens, seconds, is_drafted=is_drafted)
            self.used.append(is_drafted)
        return self.used[-num_steps:]


@pytest.mark.parametrize(
    ("drafted", "gain", "pays"), [(1.2, 2.0, True), (2.2, 2.0, False), (1.0, 1.0, False), (0.99, 1.0, False)]
)
def test_it_drafts_where_that_gives_more_tokens_in_the_same_time(
    drafted: float, gain: float, *, pays: bool
) -> None:
    speculation, machine = Speculation(4), Machine(drafted=drafted, gain=gain)
    assert machine.run(speculation, 2 * NUM_TRIED) == [True, False] * NUM_TRIED, "both in turn"
    assert machine.run(speculation, NUM_BETWEEN) == [pays] * NUM_BETWEEN
    assert speculation.chosen(4) == pays


def test_it_changes_its_mind_when_the_text_does() -> None:
    speculation, machine = Speculation(4), Machine()
    machine.run(speculation, 2 * NUM_TRIED + NUM_BETWEEN)
    assert speculation.chosen(4)
    machine.gain = 1.0
    machine.run(speculation, 2 * (2 * NUM_TRIED + NUM_BETWEEN))
    assert not speculation.chosen(4)
    machine.gain = 3.0
    machine.run(speculation, 12 * (2 * NUM_TRIED + NUM_BETWEEN))
    assert speculation.chosen(4)


def test_where_it_does_not_pay_it_is_tried_ever_less() -> None:
    speculation, machine = Speculation(4), Machine(drafted=6.0)
    machine.run(speculation, 40 * NUM_BETWEEN)
    tried = sum(machine.run(speculation, 20 * MOST_BETWEEN))
    assert NUM_TRIED * 19 <= tried <= NUM_TRIED * 20
    machine.drafted = 1.1
    machine.run(speculation, MOST_BETWEEN + 2 * NUM_TRIED)
    assert speculation.chosen(4)


def test_where_nothing_can_be_drafted_nothing_is_measured() -> None:
    speculation, machine = Speculation(4), Machine(finds=False)
    machine.run(speculation, 1000)
    machine.finds = True
    machine.run(speculation, 2 * NUM_TRIED)
    assert speculation.chosen(4)


def test_numbers_of_sequences_are_measured_by_themselves() -> None:
    speculation = Speculation(4)
    Machine().run(speculation, 2 * NUM_TRIED, num_sequences=1)
    Machine(drafted=4.0).run(speculation, 2 * NUM_TRIED, num_sequences=32)
    assert (speculation.chosen(1), speculation.chosen(32), speculation.chosen(63)) == (True, False, False)


def test_one_slow_step_decides_nothing() -> None:
    speculation, draw = Speculation(4), random.Random(3)
    machine = Machine()
    for _ in range(2 * NUM_TRIED):
        machine.drafted = 30.0 if draw.random() < 0.2 else 1.2
        machine.run(speculation, 1)
    assert speculation.chosen(4)


def test_it_is_silent_for_a_while_after_a_failure() -> None:
    speculation, machine = Speculation(4), Machine()
    machine.run(speculation, 2 * NUM_TRIED + 3)
    speculation.failed()
    assert machine.run(speculation, NUM_AFTER_FAILURE) == [False] * NUM_AFTER_FAILURE
    always = Speculation(4, is_measured=False)
    assert machine.run(always, 3) == [True] * 3
    always.failed()
    assert not any(machine.run(always, NUM_AFTER_FAILURE))
    assert machine.run(always, 300) == [True] * 300
