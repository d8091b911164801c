from concurrent.futures import Future

import pytest

from expert_workers.status import Scaled
from expert_workers.supervision.endings import Endings
from expert_workers.supervision.pending_changes import PendingChange, PendingChanges
from expert_workers.transports.base import Failure, FailureReason
from moe_model.errors import ClusterError, FencedError, WorkerStartError, WorldError
from tests.expert_workers.supervision.published import FakePool

FENCED = Failure(FailureReason.FENCED, "worker 0: another coordinator's")
RAISED = Failure(FailureReason.RAISED, "worker 1: no such file")


class World:
    def __init__(self, *, is_starting: bool) -> None:
        self.pool, self.told = FakePool(), list[str]()
        self.pending, self.change = PendingChanges(), PendingChange(is_start=is_starting)
        self.pending.add(self.change)
        self.endings = Endings(self.pool, self.pending, self.told.append)

    @property
    def waiting(self) -> "Future[Scaled]":
        return self.change.future


def test_a_failed_start_is_told_to_the_caller_that_waits_for_it_and_to_no_other() -> None:
    world = World(is_starting=True)
    world.endings.fail_start(RAISED)
    with pytest.raises(WorkerStartError, match="worker 1: no such file"):
        world.waiting.result(0)
    assert world.endings.are_left_alone
    assert not world.endings.is_fenced, "the workers are ours to end"
    assert (world.pool.given_up, world.told) == ([], [])


def test_a_start_among_another_coordinators_workers_leaves_them_alone() -> None:
    world = World(is_starting=True)
    world.endings.fail_start(FENCED)
    assert isinstance(world.waiting.exception(0), WorkerStartError)
    assert world.endings.is_fenced


def test_a_coordinator_that_is_fenced_is_told_once() -> None:
    world = World(is_starting=False)
    world.endings.fence(FENCED)
    world.endings.fence(Failure(FailureReason.FENCED, "worker 1: another coordinator's"))
    assert world.told == ["worker 0: another coordinator's"]
    assert [type(why) for why in world.pool.given_up] == [FencedError]
    assert world.endings.are_left_alone
    assert not world.endings.has_failed_to_start
    assert not world.waiting.done(), "it was no start"


@pytest.mark.parametrize("is_starting", [False, True])
def test_a_cluster_that_is_gone_ends_a_start_and_is_told_once(is_starting: bool) -> None:
    world, why = World(is_starting=is_starting), ClusterError("the head is gone")
    world.endings.end(why)
    world.endings.end(ClusterError("again"))
    assert world.told == ["the head is gone"]
    assert world.pool.given_up == [], "what is lacking may yet be loaded elsewhere"
    world.endings.give_up(why)
    assert world.pool.given_up == list[WorldError]([why])
    assert world.waiting.done() == world.endings.are_left_alone == is_starting
