from dataclasses import replace
from typing import Any

import pytest

from expert_workers.dispatch.routes import HERE, Address
from expert_workers.placement.placement import Placement
from expert_workers.placement.planned import Planned
from expert_workers.supervision.desired_state import DesiredState
from expert_workers.supervision.worker_state import SupervisedWorker
from moe_model.config import ModelConfig
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog, ExpertModule
from tests.expert_workers.fakes import make_config, make_info, make_worker, placed

MODULES = list(Catalog.of_checkpoint(ModelConfig(n_layers=2, n_experts=4)).modules)
KEYS = frozenset(module.key for module in MODULES)
NOW = 100.0
WORKER = make_worker(make_config(), placed(2, 5, 1), 0)


def worker(rank: int, *held: ExpertKey, **info: Any) -> SupervisedWorker:
    """One that is ready."""
    fields = {"rank": rank, "keys": held, "free_bytes": 1 << 40, **info}
    address = Address(rank, 1, "")
    return SupervisedWorker(rank, info=make_info(**fields), address=address, held=frozenset(held))


def make_desired(replicas: int = 1) -> DesiredState:
    return DesiredState(MODULES, replicas, 0)


def place(desired: DesiredState, workers: list[SupervisedWorker], lost_before: float = 0.0) -> bool:
    return desired.place(workers, lost_before, None, {})


def hold(workers: list[SupervisedWorker], desired: DesiredState) -> None:
    """Every worker loads what it shall."""
    wanted = desired.wanted(workers)
    for each in workers:
        each.held = wanted.get(each.rank, frozenset())


def test_every_module_is_placed_and_no_worker_is_left_out() -> None:
    desired, workers = make_desired(), [worker(0), worker(1), worker(2)]
    assert not desired.is_placed
    assert place(desired, workers)
    assert desired.is_placed
    assert desired.num_moved == len(MODULES)
    wanted = desired.wanted(workers)
    assert sorted(key for rank in range(3) for key in wanted[rank]) == sorted(KEYS)
    assert all(wanted[rank] for rank in range(3))


def test_there_are_as_many_replicas_as_workers_allow() -> None:
    desired, workers = make_desired(replicas=3), [worker(0), worker(1)]
    place(desired, workers)
    assert desired.wanted(workers)[0] == desired.wanted(workers)[1] == KEYS


def test_replicas_that_were_asked_for_come_with_the_workers(caplog: pytest.LogCaptureFixture) -> None:
    """One worker cannot hold two copies; what it lacks is said, and met once there are more."""
    desired, workers = make_desired(replicas=2), [worker(0)]
    place(desired, workers)
    assert "2 replicas asked for, 1 fit on 1 workers" in caplog.text
    caplog.clear()
    workers += [worker(1), worker(2)]
    place(desired, workers)
    wanted = desired.wanted(workers)
    assert all(sum(key in wanted[rank] for rank in range(3)) == 2 for key in KEYS)
    assert "replicas" not in caplog.text


def test_nothing_is_placed_anew_while_nothing_changes() -> None:
    desired, workers = make_desired(), [worker(0), worker(1)]
    assert place(desired, workers)
    before = desired.wanted(workers)
    assert not place(desired, workers)
    assert desired.wanted(workers) == before


def test_without_a_worker_nothing_is_placed() -> None:
    desired = make_desired()
    assert not place(desired, [SupervisedWorker(0), replace(worker(1), is_leaving=True)])
    assert not desired.is_placed


def test_who_comes_gets_its_part_and_the_rest_stays_where_it_is() -> None:
    desired, workers = make_desired(), [worker(0), worker(1)]
    place(desired, workers)
    hold(workers, desired)
    before = desired.wanted(workers)
    assert place(desired, [*workers, worker(2)])
    wanted = desired.wanted([*workers, worker(2)])
    assert desired.num_moved == len(wanted[2]) > 0
    assert wanted[0] <= before[0]
    assert wanted[1] <= before[1]
    assert wanted[0] | wanted[1] | wanted[2] == KEYS


def test_who_leaves_is_given_nothing() -> None:
    desired, workers = make_desired(), [worker(0), worker(1), worker(2)]
    place(desired, workers)
    hold(workers, desired)
    workers[2].is_leaving = True
    assert place(desired, workers)
    assert 2 not in desired.wanted(workers)
    assert desired.num_moved == len(workers[2].held)


def test_who_is_lost_keeps_its_place_for_a_while() -> None:
    desired, workers = make_desired(), [worker(0), worker(1)]
    place(desired, workers)
    workers[1] = SupervisedWorker(1, lost_at=10.0, num_losses=1)
    assert not place(desired, workers, lost_before=9.9)
    assert place(desired, workers, lost_before=10.0)
    assert desired.wanted(workers)[0] == KEYS


def test_a_new_module_is_placed_and_one_that_is_removed_is_wanted_nowhere() -> None:
    desired, workers = make_desired(), [worker(0), worker(1)]
    place(desired, workers)
    before = desired.wanted(workers)
    module = ExpertModule(1, 9, 2, version=1)
    desired.add(module)
    assert not desired.is_placed
    assert place(desired, workers)
    assert desired.num_moved == 1
    wanted = desired.wanted(workers)
    [rank] = [rank for rank in (0, 1) if module.key in wanted[rank]]
    assert wanted == {**before, rank: before[rank] | {module.key}}
    assert desired.modules([module.key, (0, 0)]) == [MODULES[0], module]
    desired.remove([module.key])
    assert desired.wanted(workers) == before
    assert desired.keys == KEYS


def test_what_no_worker_holds_is_given_to_those_with_the_least_until_it_is_back() -> None:
    desired, workers = make_desired(), [worker(0), worker(1), worker(2)]
    place(desired, workers)
    hold(workers, desired)
    before = desired.wanted(workers)
    lost = before[2]
    workers[2] = SupervisedWorker(2, lost_at=10.0, num_losses=1)
    assert desired.rescue(lost | {(7, 7)}, workers, NOW) == lost
    wanted = desired.wanted(workers)
    assert wanted[0] | wanted[1] == KEYS
    assert wanted[2] == before[2]
    assert abs(len(wanted[0]) - len(wanted[1])) <= 1
    assert desired.rescue(lost, workers, NOW) == lost
    assert desired.wanted(workers) == wanted
    hold(workers[:2], desired)
    workers[2] = worker(2, *before[2])
    assert desired.wanted(workers) == before


def test_a_rescuer_that_is_lost_itself_is_followed_by_another() -> None:
    desired, workers = make_desired(), [worker(0), worker(1), worker(2)]
    place(desired, workers)
    hold(workers, desired)
    lost = workers[2].held
    workers[2] = SupervisedWorker(2, lost_at=10.0, num_losses=1)
    desired.rescue(lost, workers, NOW)
    workers[1] = SupervisedWorker(1, lost_at=10.0, num_losses=1)
    desired.wanted(workers)
    assert desired.rescue(lost, workers, NOW) == lost
    assert desired.wanted(workers)[0] >= lost


def test_no_worker_without_room_is_asked_to_rescue() -> None:
    desired = make_desired()
    full = [(layer, slot) for layer in range(2) for slot in range(4) if (layer, slot) != (0, 0)]
    workers = [worker(0, *full, num_bytes=7000, free_bytes=1100)]
    assert desired.rescue({(0, 0)}, workers, NOW) == set()
    workers = [worker(0, *full, num_bytes=7000, free_bytes=1300)]
    assert desired.rescue({(0, 0)}, workers, NOW) == {(0, 0)}


def test_who_could_not_load_is_not_asked_to_rescue_while_others_can() -> None:
    workers = [worker(0), worker(1, (1, 1))]
    workers[0].policy.failed(NOW)
    workers[0].policy.failed(NOW)
    desired = make_desired()
    assert desired.rescue({(0, 0)}, workers, NOW) == {(0, 0)}
    assert (0, 0) in desired.wanted(workers)[1]
    assert make_desired().rescue({(0, 0)}, workers[:1], NOW) == set()


def test_workers_of_one_machine_share_its_memory() -> None:
    desired = make_desired()
    held = [((0, 0),), ((0, 1),)]
    free = {"num_bytes": 1000, "free_bytes": 2600}
    missing = KEYS - {(0, 0), (0, 1)}
    apart = [worker(rank, *held[rank], node_id=f"node-{rank}", **free) for rank in range(2)]
    assert len(desired.rescue(missing, apart, NOW)) == 4
    together = [worker(rank, *held[rank], node_id="node", **free) for rank in range(2)]
    assert len(make_desired().rescue(missing, together, NOW)) == 2


def test_a_machine_without_memory_takes_nothing_more() -> None:
    workers = [worker(0, (0, 0), num_bytes=1000, free_bytes=0)]
    assert make_desired().rescue(KEYS - {(0, 0)}, workers, NOW) == set()


def test_what_was_rescued_counts_in_when_all_is_placed_again() -> None:
    desired, workers = make_desired(), [worker(0), worker(1)]
    place(desired, workers)
    hold(workers, desired)
    lost = workers[1].held
    workers[1] = SupervisedWorker(1, lost_at=10.0, num_losses=1)
    desired.rescue(lost, workers, NOW)
    hold(workers[:1], desired)
    assert place(desired, workers, lost_before=10.0)
    assert desired.num_moved == 0
    assert desired.wanted(workers)[0] == workers[0].held == KEYS


def test_this_process_keeps_what_no_worker_holds() -> None:
    desired, here = make_desired(), worker(HERE, (0, 0), (0, 1))
    workers = [worker(0, (0, 1)), here]
    place(desired, workers)
    assert desired.wanted(workers)[HERE] == {(0, 0)}
    workers[0].held |= {(0, 0)}
    assert desired.wanted(workers)[HERE] == frozenset()


EVERYWHERE = {key: (0, 1) if key[1] else (1,) for key in sorted(KEYS)}
LOADS = {key: 1.0 + 9.0 * (key[1] == 0) for key in sorted(KEYS)}


def planned() -> DesiredState:
    return DesiredState(MODULES, 1, 0, Planned(Placement(EVERYWHERE), LOADS, {0: 4.0, 1: 1.0}))


def test_a_plan_is_kept_while_its_workers_are_there() -> None:
    desired, workers = planned(), [worker(0), worker(1)]
    assert place(desired, workers)
    hold(workers, desired)
    assert desired.wanted(workers)[1] == KEYS
    assert desired.wanted(workers)[0] == {key for key in KEYS if key[1]}
    assert not place(desired, workers)


def test_a_worker_that_joins_moves_nothing_of_a_plan() -> None:
    desired, workers = planned(), [worker(0), worker(1)]
    place(desired, workers)
    hold(workers, desired)
    workers.append(worker(2))
    place(desired, workers)
    wanted = desired.wanted(workers)
    assert wanted[1] == KEYS
    assert wanted[0] == {key for key in KEYS if key[1]}


def test_what_a_lost_worker_of_a_plan_held_is_placed_and_comes_back() -> None:
    desired, workers = planned(), [worker(0), worker(1)]
    place(desired, workers)
    hold(workers, desired)
    place(desired, workers[:1])
    assert desired.wanted(workers[:1])[0] == KEYS
    assert place(desired, workers)
    assert desired.wanted(workers)[0] == {key for key in KEYS if key[1]}
