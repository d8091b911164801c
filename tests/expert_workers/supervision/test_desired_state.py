from dataclasses import replace
from typing import Any

import pytest

from expert_workers.dispatch.routes import HERE, Address
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


def member(rank: int, *held: ExpertKey, **info: Any) -> SupervisedWorker:
    """One that is ready."""
    fields = {"rank": rank, "keys": held, "free_bytes": 1 << 40, **info}
    address = Address(rank, 1, "")
    return SupervisedWorker(rank, info=make_info(**fields), address=address, held=frozenset(held))


def make_targets(replicas: int = 1) -> DesiredState:
    return DesiredState(MODULES, replicas, 0)


def place(targets: DesiredState, members: list[SupervisedWorker], lost_before: float = 0.0) -> bool:
    return targets.place(members, lost_before, None, {})


def hold(members: list[SupervisedWorker], targets: DesiredState) -> None:
    """Every worker loads what it shall."""
    wanted = targets.wanted(members)
    for each in members:
        each.held = wanted.get(each.rank, frozenset())


def test_every_module_is_placed_and_no_worker_is_left_out() -> None:
    targets, members = make_targets(), [member(0), member(1), member(2)]
    assert not targets.is_placed
    assert place(targets, members)
    assert targets.is_placed
    assert targets.num_moved == len(MODULES)
    wanted = targets.wanted(members)
    assert sorted(key for rank in range(3) for key in wanted[rank]) == sorted(KEYS)
    assert all(wanted[rank] for rank in range(3))


def test_there_are_as_many_replicas_as_workers_allow() -> None:
    targets, members = make_targets(replicas=3), [member(0), member(1)]
    place(targets, members)
    assert targets.wanted(members)[0] == targets.wanted(members)[1] == KEYS


def test_replicas_that_were_asked_for_come_with_the_workers(caplog: pytest.LogCaptureFixture) -> None:
    """One worker cannot hold two copies; what it lacks is said, and met once there are more."""
    targets, members = make_targets(replicas=2), [member(0)]
    place(targets, members)
    assert "2 replicas asked for, 1 fit on 1 workers" in caplog.text
    caplog.clear()
    members += [member(1), member(2)]
    place(targets, members)
    wanted = targets.wanted(members)
    assert all(sum(key in wanted[rank] for rank in range(3)) == 2 for key in KEYS)
    assert "replicas" not in caplog.text


def test_nothing_is_placed_anew_while_nothing_changes() -> None:
    targets, members = make_targets(), [member(0), member(1)]
    assert place(targets, members)
    before = targets.wanted(members)
    assert not place(targets, members)
    assert targets.wanted(members) == before


def test_without_a_worker_nothing_is_placed() -> None:
    targets = make_targets()
    assert not place(targets, [SupervisedWorker(0), replace(member(1), is_leaving=True)])
    assert not targets.is_placed


def test_who_comes_gets_its_part_and_the_rest_stays_where_it_is() -> None:
    targets, members = make_targets(), [member(0), member(1)]
    place(targets, members)
    hold(members, targets)
    before = targets.wanted(members)
    assert place(targets, [*members, member(2)])
    wanted = targets.wanted([*members, member(2)])
    assert targets.num_moved == len(wanted[2]) > 0
    assert wanted[0] <= before[0]
    assert wanted[1] <= before[1]
    assert wanted[0] | wanted[1] | wanted[2] == KEYS


def test_who_leaves_is_given_nothing() -> None:
    targets, members = make_targets(), [member(0), member(1), member(2)]
    place(targets, members)
    hold(members, targets)
    members[2].is_leaving = True
    assert place(targets, members)
    assert 2 not in targets.wanted(members)
    assert targets.num_moved == len(members[2].held)


def test_who_is_lost_keeps_its_place_for_a_while() -> None:
    targets, members = make_targets(), [member(0), member(1)]
    place(targets, members)
    members[1] = SupervisedWorker(1, lost_at=10.0, num_losses=1)
    assert not place(targets, members, lost_before=9.9)
    assert place(targets, members, lost_before=10.0)
    assert targets.wanted(members)[0] == KEYS


def test_a_new_module_is_placed_and_one_that_is_removed_is_wanted_nowhere() -> None:
    targets, members = make_targets(), [member(0), member(1)]
    place(targets, members)
    before = targets.wanted(members)
    module = ExpertModule(1, 9, 2, version=1)
    targets.add(module)
    assert not targets.is_placed
    assert place(targets, members)
    assert targets.num_moved == 1
    wanted = targets.wanted(members)
    [rank] = [rank for rank in (0, 1) if module.key in wanted[rank]]
    assert wanted == {**before, rank: before[rank] | {module.key}}
    assert targets.modules([module.key, (0, 0)]) == [MODULES[0], module]
    targets.remove([module.key])
    assert targets.wanted(members) == before
    assert targets.keys == KEYS


def test_what_no_worker_holds_is_given_to_those_with_the_least_until_it_is_back() -> None:
    targets, members = make_targets(), [member(0), member(1), member(2)]
    place(targets, members)
    hold(members, targets)
    before = targets.wanted(members)
    lost = before[2]
    members[2] = SupervisedWorker(2, lost_at=10.0, num_losses=1)
    assert targets.rescue(lost | {(7, 7)}, members, NOW) == lost
    wanted = targets.wanted(members)
    assert wanted[0] | wanted[1] == KEYS
    assert wanted[2] == before[2]
    assert abs(len(wanted[0]) - len(wanted[1])) <= 1
    assert targets.rescue(lost, members, NOW) == lost
    assert targets.wanted(members) == wanted
    hold(members[:2], targets)
    members[2] = member(2, *before[2])
    assert targets.wanted(members) == before


def test_a_rescuer_that_is_lost_itself_is_followed_by_another() -> None:
    targets, members = make_targets(), [member(0), member(1), member(2)]
    place(targets, members)
    hold(members, targets)
    lost = members[2].held
    members[2] = SupervisedWorker(2, lost_at=10.0, num_losses=1)
    targets.rescue(lost, members, NOW)
    members[1] = SupervisedWorker(1, lost_at=10.0, num_losses=1)
    targets.wanted(members)
    assert targets.rescue(lost, members, NOW) == lost
    assert targets.wanted(members)[0] >= lost


def test_no_worker_without_room_is_asked_to_rescue() -> None:
    targets = make_targets()
    full = [(layer, slot) for layer in range(2) for slot in range(4) if (layer, slot) != (0, 0)]
    members = [member(0, *full, num_bytes=7000, free_bytes=1100)]
    assert targets.rescue({(0, 0)}, members, NOW) == set()
    members = [member(0, *full, num_bytes=7000, free_bytes=1300)]
    assert targets.rescue({(0, 0)}, members, NOW) == {(0, 0)}


def test_who_could_not_load_is_not_asked_to_rescue_while_others_can() -> None:
    members = [member(0), member(1, (1, 1))]
    members[0].policy.failed(NOW)
    members[0].policy.failed(NOW)
    targets = make_targets()
    assert targets.rescue({(0, 0)}, members, NOW) == {(0, 0)}
    assert (0, 0) in targets.wanted(members)[1]
    assert make_targets().rescue({(0, 0)}, members[:1], NOW) == set()


def test_workers_of_one_machine_share_its_memory() -> None:
    targets = make_targets()
    held = [((0, 0),), ((0, 1),)]
    free = {"num_bytes": 1000, "free_bytes": 2600}
    missing = KEYS - {(0, 0), (0, 1)}
    apart = [member(rank, *held[rank], node_id=f"node-{rank}", **free) for rank in range(2)]
    assert len(targets.rescue(missing, apart, NOW)) == 4
    together = [member(rank, *held[rank], node_id="node", **free) for rank in range(2)]
    assert len(make_targets().rescue(missing, together, NOW)) == 2


def test_a_machine_without_memory_takes_nothing_more() -> None:
    members = [member(0, (0, 0), num_bytes=1000, free_bytes=0)]
    assert make_targets().rescue(KEYS - {(0, 0)}, members, NOW) == set()


def test_what_was_rescued_counts_in_when_all_is_placed_again() -> None:
    targets, members = make_targets(), [member(0), member(1)]
    place(targets, members)
    hold(members, targets)
    lost = members[1].held
    members[1] = SupervisedWorker(1, lost_at=10.0, num_losses=1)
    targets.rescue(lost, members, NOW)
    hold(members[:1], targets)
    assert place(targets, members, lost_before=10.0)
    assert targets.num_moved == 0
    assert targets.wanted(members)[0] == members[0].held == KEYS


def test_this_process_keeps_what_no_worker_holds() -> None:
    targets, here = make_targets(), member(HERE, (0, 0), (0, 1))
    members = [member(0, (0, 1)), here]
    place(targets, members)
    assert targets.wanted(members)[HERE] == {(0, 0)}
    members[0].held |= {(0, 0)}
    assert targets.wanted(members)[HERE] == frozenset()
