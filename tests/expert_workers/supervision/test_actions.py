from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expert_workers.dispatch.routes import HERE, Address
from expert_workers.supervision.actions import (
    BringUp,
    Drop,
    End,
    Load,
    actions,
    holders_of,
    next_due,
    note_adopted,
    note_surplus,
)
from expert_workers.supervision.options import DROP_AFTER
from expert_workers.supervision.worker_state import Keys, SupervisedWorker, Surplus
from moe_model.layers.dispatch import ExpertKey
from tests.expert_workers.fakes import make_config, make_worker, placed

CONFIG = make_config()
WORKER = make_worker(CONFIG, placed(2, 5, 1), 0)
A, B, C = (0, 0), (0, 1), (1, 0)
NONE: Keys = frozenset()


def ready(rank: int, *held: ExpertKey) -> SupervisedWorker:
    return SupervisedWorker(rank, address=Address(rank, 1, ""), held=frozenset(held))


def keys(*found: ExpertKey) -> Keys:
    return frozenset(found)


def test_routes_name_those_that_shall_hold_a_module_and_do() -> None:
    workers = [ready(0, A, B), ready(1, A), ready(2), SupervisedWorker(3, held=keys(A))]
    wanted = {0: keys(A), 1: keys(A, B), 2: keys(A)}
    assert holders_of(workers, wanted, [A, B, C]) == {A: (0, 1), B: (0,), C: ()}


def test_of_those_that_shall_not_hold_it_any_more_one_is_enough() -> None:
    leaving = ready(0, A)
    leaving.is_leaving = True
    workers = [leaving, ready(HERE, A), ready(1, A), ready(2, A)]
    assert holders_of(workers, {}, [A]) == {A: (1,)}
    assert holders_of(workers[:2], {}, [A]) == {A: (HERE,)}
    assert holders_of(workers[:1], {}, [A]) == {A: (0,)}
    assert holders_of(workers, {0: keys(A)}, [A]) == {A: (0,)}


def test_who_is_not_ready_is_brought_up_when_its_time_has_come() -> None:
    worker = SupervisedWorker(1)
    assert actions([worker], {}, {}, now=0.0) == [BringUp(1)]
    worker.policy.next_at = 5.0
    assert actions([worker], {}, {}, now=4.9) == []
    assert actions([worker], {}, {}, now=5.0) == [BringUp(1)]


def test_what_is_missing_is_loaded_and_after_a_failure_not_at_once() -> None:
    worker = ready(1, A)
    wanted = {1: keys(A, B, C)}
    assert actions([worker], wanted, {}, now=0.0) == [Load(1, keys(B, C))]
    worker.policy.next_at = 5.0
    assert actions([worker], wanted, {}, now=4.9) == []


def test_no_worker_is_asked_for_two_things_at_once() -> None:
    busy = [ready(0), SupervisedWorker(1), ready(2, A)]
    for worker in busy:
        worker.is_busy = True
    busy[2].surplus = Surplus(keys(A), 1, since=0.0)
    assert actions(busy, {0: keys(A)}, {}, now=100.0) == []


def test_a_surplus_is_dropped_some_time_after_no_step_can_ask_for_it_any_more() -> None:
    worker = ready(1, A, B)
    note_surplus(worker, keys(B), keys(B), version=7)
    note_adopted([worker], 6, now=10.0)
    assert actions([worker], {1: keys(B)}, {1: keys(B)}, now=1000.0) == []
    note_adopted([worker], 7, now=10.0)
    note_adopted([worker], 8, now=11.0)
    late = 10.0 + DROP_AFTER
    assert actions([worker], {1: keys(B)}, {1: keys(B)}, now=late - 0.01) == []
    assert actions([worker], {1: keys(B)}, {1: keys(B)}, now=late) == [Drop(1, keys(A))]


def test_what_is_wanted_or_named_again_meanwhile_is_not_dropped() -> None:
    worker = ready(1, A, B)
    worker.surplus = Surplus(keys(A, B), 1, since=0.0)
    assert actions([worker], {1: keys(A)}, {1: keys(A)}, now=9.0) == [Drop(1, keys(B))]
    assert actions([worker], {1: keys(A)}, {1: keys(B)}, now=9.0) == []
    note_surplus(worker, keys(A), keys(B), version=2)
    assert worker.surplus is None


def test_another_surplus_waits_anew_and_the_same_one_does_not() -> None:
    worker = ready(1, A, B)
    note_surplus(worker, NONE, keys(B), version=1)
    note_adopted([worker], 1, now=0.0)
    note_surplus(worker, NONE, keys(B), version=2)
    assert worker.surplus == Surplus(keys(A), 1, since=0.0)
    note_surplus(worker, NONE, NONE, version=3)
    assert worker.surplus == Surplus(keys(A, B), 3, since=None)


def test_who_leaves_is_ended_when_nothing_leads_to_it_any_more() -> None:
    worker = ready(1, A)
    worker.is_leaving = True
    note_surplus(worker, NONE, keys(A), version=1)
    assert worker.surplus is None
    note_surplus(worker, NONE, NONE, version=2)
    note_adopted([worker], 2, now=0.0)
    assert actions([worker], {}, {}, now=DROP_AFTER / 2) == []
    assert actions([worker], {}, {1: keys(A)}, now=DROP_AFTER) == []
    assert actions([worker], {}, {}, now=DROP_AFTER) == [End(1)]


def test_who_leaves_and_holds_nothing_or_is_lost_is_ended() -> None:
    empty, lost = ready(1), SupervisedWorker(2)
    empty.is_leaving = lost.is_leaving = True
    note_surplus(empty, NONE, NONE, version=1)
    note_adopted([empty], 1, now=0.0)
    assert actions([empty, lost], {}, {}, now=DROP_AFTER) == [End(1), End(2)]


def test_the_clock_alone_makes_something_due() -> None:
    waiting, surplus, busy = SupervisedWorker(0), ready(1, A), SupervisedWorker(2)
    busy.is_busy = True
    assert next_due([ready(3, A), busy], 0.0) is None
    waiting.policy.next_at = 5.0
    assert next_due([waiting, busy], 2.0) == 3.0
    surplus.surplus = Surplus(keys(A), 1, since=1.0)
    assert next_due([waiting, surplus], 2.0) == pytest.approx(DROP_AFTER - 1.0)
    assert next_due([waiting], 100.0) == 0.01


ALL: list[ExpertKey] = [(layer, slot) for layer in range(2) for slot in range(3)]
some = st.sets(st.sampled_from(ALL)).map(frozenset)


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[SupervisedWorker], dict[int, Keys]]:
    workers = []
    for rank in range(draw(st.integers(1, 4))):
        worker = ready(rank, *draw(some)) if draw(st.booleans()) else SupervisedWorker(rank)
        worker.is_leaving, worker.is_busy = draw(st.booleans()), draw(st.booleans())
        workers.append(worker)
    return workers, {worker.rank: draw(some) for worker in workers if not worker.is_leaving}


def routed_by(workers: list[SupervisedWorker], wanted: dict[int, Keys]) -> dict[int, Keys]:
    holders = holders_of(workers, wanted, ALL)
    return {m.rank: frozenset(key for key in ALL if m.rank in holders[key]) for m in workers}


@given(situations(), st.floats(0, 10))
def test_nothing_is_taken_from_where_it_is_wanted_or_asked_for(
    situation: tuple[list[SupervisedWorker], dict[int, Keys]], now: float
) -> None:
    workers, wanted = situation
    routed = routed_by(workers, wanted)
    for worker in workers:
        note_surplus(worker, wanted.get(worker.rank, NONE), routed[worker.rank], 1)
    note_adopted(workers, 1, 0.0)
    found = actions(workers, wanted, routed, now)
    assert len({action.rank for action in found}) == len(found)
    for action in found:
        worker = workers[action.rank]
        assert not worker.is_busy
        match action:
            case Load(_, new):
                assert not new & worker.held
                assert new <= wanted[action.rank]
            case Drop(_, old):
                assert old <= worker.held
                assert not old & (wanted.get(action.rank, NONE) | routed[action.rank])
                assert now >= DROP_AFTER
            case End():
                assert worker.is_leaving
                assert not worker.is_ready or not worker.held & routed[action.rank]


@given(situations())
def test_doing_what_is_due_leads_to_what_is_wanted_and_no_module_is_without_a_holder_meanwhile(
    situation: tuple[list[SupervisedWorker], dict[int, Keys]],
) -> None:
    """Every action succeeds at once, and routes are adopted as soon as they are published."""
    workers, wanted = situation
    workers = [replace(worker, is_busy=False) for worker in workers]
    held_before = {key for worker in workers if worker.is_ready for key in worker.held}
    for step in range(20):
        routed = routed_by(workers, wanted)
        for worker in workers:
            note_surplus(worker, wanted.get(worker.rank, NONE), routed[worker.rank], step)
        note_adopted(workers, step, float(10 * step))
        for action in actions(workers, wanted, routed, float(10 * step)):
            [worker] = [each for each in workers if each.rank == action.rank]
            match action:
                case BringUp():
                    worker.address = Address(worker.rank, 1, "")
                case Load(_, new):
                    worker.held |= new
                case Drop(_, old):
                    worker.held -= old
                case End():
                    workers.remove(worker)
        held = {key for worker in workers for key in worker.held}
        everywhere = {key for each in wanted.values() for key in each}
        assert held_before & everywhere <= held
    for worker in workers:
        if not worker.is_leaving:
            wish = wanted[worker.rank]
            assert wish <= worker.held
            # What is wanted nowhere stays with one of those that have it, in case that it is asked for.
            assert all(holders_of(workers, wanted, [key])[key] for key in worker.held - wish)
