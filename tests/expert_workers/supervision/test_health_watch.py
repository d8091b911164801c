"""What a supervisor makes of the answers to its heartbeats."""

import threading
from dataclasses import replace

import pytest

from expert_workers.supervision.health import HealthOptions
from expert_workers.transports.base import Failure, FailureReason, WorkerFailureError
from expert_workers.worker.expert_worker import WorkerInfo
from tests.expert_workers.supervised import OPTIONS, supervised

BEATING = replace(OPTIONS, health=HealthOptions(beat_interval=0.02, canary_interval=0.0))


def test_a_worker_that_is_another_process_than_the_one_that_came_up_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with supervised(2, replicas=2, options=BEATING) as (coordinator, _):
        beat = coordinator.told.beat

        def of_another(rank: int, client: str, timeout: float) -> WorkerInfo:
            info = beat(rank, client, timeout)
            return replace(info, pid=-1) if rank == 1 and not coordinator.notes.losses else info

        monkeypatch.setattr(coordinator.told, "beat", of_another)
        coordinator.until(lambda: bool(coordinator.notes.losses), coordinator.check_equal)
        assert coordinator.notes.losses == [(1, FailureReason.DIED)]
        assert coordinator.workers()[1].last_loss == "worker 1: is another process now"


def test_a_heartbeat_from_before_a_worker_came_back_says_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with supervised(2, replicas=2, options=BEATING) as (coordinator, world):
        beat, asked, may_fail = coordinator.told.beat, [0], threading.Event()

        def late(rank: int, client: str, timeout: float) -> WorkerInfo:
            if rank == 0:
                return beat(rank, client, timeout)
            asked[0] += 1
            if asked[0] > 1:
                return beat(rank, client, timeout)
            assert may_fail.wait(30)
            raise WorkerFailureError(Failure(FailureReason.LATE, "worker 1: no answer in time"))

        monkeypatch.setattr(coordinator.told, "beat", late)
        coordinator.until(lambda: asked[0] == 1, coordinator.check_equal)
        world.machine.kill(1)
        coordinator.until(lambda: bool(coordinator.notes.restarts), coordinator.check_equal)
        may_fail.set()
        # It is asked again only when the first answer has been taken in.
        coordinator.until(lambda: asked[0] > 2, coordinator.check_equal)
        assert coordinator.notes.losses == [(1, FailureReason.DIED)]
