"""What a supervisor does about workers that die, stop, lie or are taken over."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.patience import Patience
from expert_workers.status import WorkerState
from expert_workers.supervision.health import HealthOptions
from expert_workers.transports.base import FailureReason
from moe_model.errors import ClusterError, ExpertsLostError, FencedError, WorkerStartError
from moe_model.versions.expert_versions import ExpertModule
from tests.expert_workers.supervised import ALL, OPTIONS, RESTARTS, ROUTING, X_TD, Coordinator, supervised
from tests.threads import no_thread_left

BEATING = replace(OPTIONS, health=HealthOptions(beat_interval=0.05, canary_interval=0.0))
SINGING = replace(OPTIONS, health=HealthOptions(beat_interval=0.0, canary_interval=0.1))


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """No thread is left."""
    with no_thread_left():
        yield


def is_whole(coordinator: Coordinator, num_workers: int, copies: int) -> bool:
    """Whether all workers are there and hold what they shall."""
    ranks = range(num_workers)
    return len(coordinator.held()) == num_workers and coordinator.num_holders(*ranks) == {copies}


def has_restarted(coordinator: Coordinator, times: int) -> bool:
    return len(coordinator.notes.restarts) == times


def test_a_killed_worker_comes_back_and_is_loaded_again_while_replicas_answer() -> None:
    with supervised(3, replicas=2) as (coordinator, world):
        before, pid = coordinator.held(), world.machine.pid(1)
        world.machine.kill(1)
        coordinator.check_equal()
        coordinator.until(lambda: coordinator.workers()[1].num_losses == 1, coordinator.check_equal)
        coordinator.until(lambda: is_whole(coordinator, 3, 2), coordinator.check_equal)
        assert coordinator.held() == before
        assert world.machine.pid(1) != pid
        assert coordinator.notes.losses == coordinator.notes.restarts == [(1, FailureReason.DIED)]
        member = coordinator.workers()[1]
        assert (member.num_losses, member.state) == (1, WorkerState.READY)
        assert member.last_loss.startswith("worker 1: its stream ")
        calls = coordinator.pool.stats().workers[1].calls
        coordinator.until(lambda: coordinator.pool.stats().workers[1].calls > calls, coordinator.check_equal)


def test_a_death_is_noticed_while_nothing_is_dispatched() -> None:
    with supervised(2) as (coordinator, world):
        world.machine.kill(0)
        coordinator.until(lambda: coordinator.workers()[0].num_losses == 1)
        coordinator.until(lambda: is_whole(coordinator, 2, 1))
        coordinator.check_equal()


def test_workers_killed_one_after_the_other_cost_nothing() -> None:
    with supervised(3, replicas=2) as (coordinator, world):
        for number, rank in enumerate((0, 1, 2, 0), 1):
            world.machine.kill(rank)
            coordinator.until(partial(has_restarted, coordinator, number), coordinator.check_equal)
            coordinator.until(lambda: is_whole(coordinator, 3, 2), coordinator.check_equal)
        assert [rank for rank, _ in coordinator.notes.restarts] == [0, 1, 2, 0]


def test_without_a_replica_a_step_waits_until_the_worker_is_back() -> None:
    with supervised(2) as (coordinator, world):
        world.machine.kill(1)
        coordinator.check_equal()
        assert coordinator.notes.restarts == [(1, FailureReason.DIED)]


def test_all_workers_at_once_may_die() -> None:
    with supervised(3, replicas=2) as (coordinator, world):
        for rank in range(3):
            world.machine.kill(rank)
        coordinator.check_equal()
        coordinator.until(lambda: is_whole(coordinator, 3, 2), coordinator.check_equal)


def test_who_does_not_come_back_is_replaced_by_the_others_in_time() -> None:
    options = replace(OPTIONS, restore_after=0.2)
    with supervised(3, replicas=2, options=options) as (coordinator, world):
        world.machine.restarts = False
        world.machine.kill(1)
        coordinator.until(lambda: coordinator.num_holders(0, 2) == {2}, coordinator.check_equal)
        assert coordinator.workers()[1].state is not WorkerState.READY
        world.machine.start(1)
        coordinator.until(lambda: bool(coordinator.held().get(1)), coordinator.check_equal)
        coordinator.until(lambda: is_whole(coordinator, 3, 2), coordinator.check_equal)
        assert coordinator.notes.restarts == [(1, FailureReason.DIED)]


@pytest.mark.parametrize("on_loss", [OnLoss.AUTO, OnLoss.RELOAD])
def test_experts_without_a_holder_are_loaded_by_survivors_for_the_step_that_waits(on_loss: OnLoss) -> None:
    with supervised(3, options=replace(OPTIONS, on_loss=on_loss)) as (coordinator, world):
        before = coordinator.held()
        world.machine.restarts = False
        world.machine.kill(1)
        coordinator.check_equal()
        assert coordinator.held()[0] | coordinator.held()[2] == ALL
        assert coordinator.num_loaded_here == 0
        world.machine.start(1)
        coordinator.until(lambda: coordinator.held() == before, coordinator.check_equal)


def test_experts_without_a_holder_are_loaded_here_where_that_is_wanted() -> None:
    with supervised(2, options=replace(OPTIONS, on_loss=OnLoss.LOCAL)) as (coordinator, world):
        before = coordinator.held()
        world.machine.restarts = False
        world.machine.kill(1)
        coordinator.check_equal()
        assert coordinator.num_loaded_here == 1
        assert coordinator.held() == {0: before[0]}
        assert coordinator.pool.missing_experts() == ()
        world.machine.start(1)
        coordinator.until(lambda: coordinator.held() == before, coordinator.check_equal)
        coordinator.until(
            lambda: not any(rank not in (0, 1) for rank in coordinator.pool._routes.linked.links)
        )
        coordinator.check_equal()


def test_without_any_worker_all_is_loaded_here() -> None:
    with supervised(2, options=replace(OPTIONS, on_loss=OnLoss.AUTO)) as (coordinator, world):
        world.machine.restarts = False
        world.machine.kill(0)
        world.machine.kill(1)
        coordinator.check_equal()
        assert coordinator.num_loaded_here >= 1
        assert coordinator.held() == {}


def test_what_shall_fail_at_once_is_restored_all_the_same() -> None:
    with supervised(2, options=replace(OPTIONS, on_loss=OnLoss.FAIL)) as (coordinator, world):
        world.machine.kill(1)
        with pytest.raises(ExpertsLostError):
            coordinator.check_equal()
        coordinator.until(lambda: bool(coordinator.notes.restarts) and is_whole(coordinator, 2, 1))
        coordinator.check_equal()


def test_a_module_is_exchanged_while_a_worker_is_gone_for_long() -> None:
    options = replace(OPTIONS, restore_after=0.2)
    with supervised(3, options=options) as (coordinator, world), ThreadPoolExecutor(1) as executor:
        world.machine.restarts = False
        world.machine.kill(1)
        new = ExpertModule(1, 7, 2, version=1)
        prepared = executor.submit(coordinator.supervisor.prepare, new)
        coordinator.until(prepared.done)
        prepared.result()
        coordinator.until(lambda: coordinator.num_holders(0, 2) == {1})
        assert any(new.key in held for held in coordinator.held().values())
        coordinator.check_equal()


def test_there_may_be_fewer_workers_while_experts_are_here() -> None:
    with supervised(3, options=replace(OPTIONS, on_loss=OnLoss.LOCAL)) as (coordinator, world):
        world.machine.restarts = False
        world.machine.kill(2)
        coordinator.check_equal()
        assert coordinator.num_loaded_here == 1
        with ThreadPoolExecutor(1) as executor:
            fewer = executor.submit(coordinator.supervisor.scale, 2)
            coordinator.until(fewer.done, coordinator.check_equal)
            assert fewer.result().num_workers == 2
        assert coordinator.held().keys() == coordinator.workers().keys() == {0, 1}
        coordinator.until(lambda: is_whole(coordinator, 2, 1), coordinator.check_equal)


def test_who_dies_whenever_it_starts_is_tried_ever_less_and_the_others_go_on() -> None:
    with supervised(3, replicas=2) as (coordinator, world):
        coordinator.told.crashing.add(1)
        world.machine.kill(1)
        coordinator.until(
            lambda: coordinator.workers()[1].state is WorkerState.BROKEN, coordinator.check_equal
        )
        assert coordinator.workers()[1].num_losses == 3
        with world.machine.lock:  # It is started again with the lock held.
            num_started = world.machine.num_started
        coordinator.check_equal()
        assert world.machine.num_started == num_started <= 3 + 4
        assert coordinator.workers()[1].policy.next_at > 0
        assert {0, 2} <= coordinator.held().keys()


def test_who_is_stopped_is_killed_and_comes_back() -> None:
    with supervised(3, replicas=2) as (coordinator, world):
        pid = world.machine.pid(2)
        world.machine.stop(2)
        coordinator.until(lambda: bool(coordinator.notes.losses), coordinator.check_equal)
        assert coordinator.notes.losses == [(2, FailureReason.LATE)]
        coordinator.until(lambda: is_whole(coordinator, 3, 2), coordinator.check_equal)
        assert coordinator.told.fenced == [pid]
        assert coordinator.notes.restarts == [(2, FailureReason.LATE)]


def test_who_is_stopped_is_found_by_the_heart_that_does_not_beat() -> None:
    with supervised(2, replicas=2, options=BEATING) as (coordinator, world):
        pid = world.machine.pid(1)
        coordinator.until(lambda: coordinator.workers()[1].info is not None)
        assert not coordinator.notes.losses
        world.machine.stop(1)
        coordinator.until(lambda: bool(coordinator.notes.restarts))
        assert coordinator.notes.restarts == [(1, FailureReason.LATE)]
        assert coordinator.told.fenced == [pid]
        coordinator.until(lambda: is_whole(coordinator, 2, 2))
        coordinator.check_equal()


def test_weights_that_change_in_memory_are_found_and_the_worker_is_replaced() -> None:
    with supervised(2, replicas=2, options=SINGING) as (coordinator, world):
        pid = world.machine.pid(1)
        coordinator.told.odd_pids.add(pid)
        coordinator.until(lambda: bool(coordinator.notes.restarts), coordinator.check_equal)
        assert coordinator.notes.losses[0] == coordinator.notes.restarts[0] == (1, FailureReason.CORRUPT)
        assert coordinator.told.fenced[0] == pid
        assert "computes something else than when it was loaded" in coordinator.workers()[1].last_loss
        coordinator.until(lambda: is_whole(coordinator, 2, 2), coordinator.check_equal)


def test_weights_that_are_wrong_when_they_are_loaded_are_found_by_comparison() -> None:
    with supervised(2, replicas=2) as (coordinator, world):
        coordinator.told.odd_pids.add(world.machine.num_started + 1)
        world.machine.kill(1)
        coordinator.until(
            lambda: (1, FailureReason.CORRUPT) in coordinator.notes.losses, coordinator.check_equal
        )
        assert "computes something else than worker 0's" in coordinator.workers()[1].last_loss
        coordinator.until(lambda: is_whole(coordinator, 2, 2), coordinator.check_equal)


def test_a_second_coordinator_is_refused_while_the_first_one_lives() -> None:
    with supervised(2) as (first, world):
        second = Coordinator(world, epoch=2)
        with pytest.raises(WorkerStartError, match=r"^worker [01]: is in use by coordinator 1"):
            second.start(2)
        second.close()
        first.check_equal()
        assert not first.notes.losses
        assert second.told.fenced == []


def test_who_was_taken_over_from_does_nothing_any_more() -> None:
    with supervised(2, options=BEATING) as (first, world):
        pids = [world.machine.pid(rank) for rank in (0, 1)]
        second = Coordinator(world, epoch=2, by_force=True)
        second.start(2)
        first.until(lambda: bool(first.over))
        assert first.supervisor.is_fenced
        assert "has taken it over" in first.over[0]
        for _ in range(3):
            second.check_equal()
        assert len(first.over) == 1
        assert first.told.fenced == []
        assert [world.machine.pid(rank) for rank in (0, 1)] == pids
        assert not second.notes.losses
        second.close()


def test_who_was_taken_over_from_finds_out_by_its_next_step() -> None:
    with supervised(2, replicas=2) as (first, world):
        pids = [world.machine.pid(rank) for rank in (0, 1)]
        second = Coordinator(world, epoch=2, by_force=True)
        second.start(2)
        first.pool._routes.patience = Patience(PoolOptions(rescue_patience=3600, wait_timeout=3600))
        with pytest.raises(FencedError, match="has taken over"):
            first.pool.forward(0, X_TD, ROUTING)
        first.until(lambda: bool(first.over))
        assert first.supervisor.is_fenced
        second.check_equal()
        assert first.told.fenced == []
        assert [world.machine.pid(rank) for rank in (0, 1)] == pids
        second.close()


def test_once_the_cluster_is_gone_a_step_that_lacks_experts_is_not_kept_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """That worker cannot be started again; rows of others go on. It is said once."""
    looking = replace(OPTIONS, health=HealthOptions(beat_interval=0, canary_interval=0, check_interval=0.02))
    with supervised(2, options=looking) as (coordinator, world):
        coordinator.pool._routes.patience = Patience(PoolOptions(rescue_patience=3600, wait_timeout=3600))
        coordinator.told.is_gone = True
        coordinator.until(lambda: bool(coordinator.over), coordinator.check_equal)
        world.machine.restarts = False
        world.machine.kill(1)
        with pytest.raises(ClusterError, match="the head is gone"):
            coordinator.pool.forward(0, X_TD, ROUTING)
        looks = coordinator.told.num_looks
        coordinator.until(lambda: coordinator.told.num_looks > looks + 2)
        assert coordinator.over == ["the head is gone"]
        assert sum("no longer ours" in line for line in caplog.messages) == 1


@pytest.mark.parametrize("on_loss", [OnLoss.LOCAL, OnLoss.RELOAD, OnLoss.AUTO])
@pytest.mark.parametrize("is_known_first", [True, False], ids=["head first", "worker first"])
def test_once_the_cluster_is_gone_a_step_waits_for_experts_that_can_still_be_loaded(
    on_loss: OnLoss, is_known_first: bool
) -> None:
    """What is under way then ends as it should, whichever of the two is noticed first."""
    looking = replace(LOOKING, on_loss=on_loss)
    with supervised(2, options=looking) as (coordinator, world):
        world.machine.restarts = False
        coordinator.told.is_gone = True
        if is_known_first:
            coordinator.until(lambda: bool(coordinator.over), coordinator.check_equal)
        world.machine.kill(1)
        coordinator.check_equal()
        coordinator.until(lambda: bool(coordinator.over), coordinator.check_equal)
        assert coordinator.over == ["the head is gone"]


LOOKING = replace(
    OPTIONS,
    health=HealthOptions(beat_interval=0, canary_interval=0, check_interval=0.02, check_timeout=2.0),
)


def test_a_head_that_does_not_say_how_many_machines_there_are_is_gone() -> None:
    """It died, or hangs, after it was found to listen: what it is asked then is never answered."""
    with supervised(2, options=replace(LOOKING, workers_per_node=2)) as (coordinator, _):
        coordinator.until(lambda: coordinator.told.num_counts > 1)
        try:
            coordinator.told.answers.clear()
            coordinator.until(lambda: bool(coordinator.over))
        finally:
            coordinator.told.answers.set()
        assert coordinator.over == ["the head of the Ray cluster does not answer"]


def test_machines_are_not_counted_where_nothing_depends_on_their_number() -> None:
    with supervised(2, options=LOOKING) as (coordinator, _):
        coordinator.until(lambda: coordinator.told.num_looks > 2)
        assert coordinator.told.num_counts == 0
        assert not coordinator.over


def test_one_file_that_cannot_be_read_costs_no_other_expert() -> None:
    with supervised(2) as (coordinator, world):
        held = coordinator.held()[1]
        bad = min(held)
        world.broken.add(bad)
        world.machine.kill(1)
        coordinator.until(lambda: bool(coordinator.workers()[1].problem))
        member = coordinator.workers()[1]
        assert (member.state, member.held) == (WorkerState.INCOMPLETE, held - {bad})
        assert member.problem == f"worker 1: file {bad[1]}: is broken"
        assert {module.key for module in coordinator.pool.missing_experts()} == {bad}
        assert member.canaries.keys() == held - {bad}


def test_survivors_load_what_can_be_read_of_lost_experts() -> None:
    with supervised(3, options=replace(OPTIONS, on_loss=OnLoss.AUTO)) as (coordinator, world):
        bad = min(coordinator.held()[1])
        world.broken.add(bad)
        world.machine.restarts = False
        world.machine.kill(1)
        coordinator.until(lambda: coordinator.num_holders(0, 1, 2) == {0, 1} and 1 not in coordinator.held())
        coordinator.until(lambda: {module.key for module in coordinator.pool.missing_experts()} == {bad})
        assert coordinator.held()[0] | coordinator.held()[2] == ALL - {bad}


def test_who_is_back_without_what_it_should_hold_is_not_ready() -> None:
    """Its experts cannot be read; what is missing, and why, is shown until they can."""
    options = replace(OPTIONS, restarts=replace(RESTARTS, max_failures=1000, longest_wait=0.05))
    with supervised(2, options=options) as (coordinator, world):
        lacking = coordinator.held()[1]
        world.broken |= lacking
        world.machine.kill(1)
        coordinator.until(lambda: bool(coordinator.workers()[1].problem))
        member = coordinator.workers()[1]
        assert (member.state, member.missing) == (WorkerState.INCOMPLETE, lacking)
        assert "is broken" in member.problem
        assert {module.key for module in coordinator.pool.missing_experts()} == lacking
        world.broken.clear()
        coordinator.until(lambda: not coordinator.pool.missing_experts())
        coordinator.until(lambda: coordinator.workers()[1].state is WorkerState.READY)
        assert not coordinator.workers()[1].problem
        coordinator.check_equal()
