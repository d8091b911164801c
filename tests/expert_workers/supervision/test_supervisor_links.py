"""What a supervisor makes of the links that the pool opens for it."""

from dataclasses import replace
from typing import Any

import pytest

from expert_workers.transports.base import FailureReason, Link
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from tests.expert_workers.supervised import CATALOG, OPTIONS, Coordinator, supervised

QUICK = replace(OPTIONS, restarts=replace(OPTIONS.restarts, first_wait=0.01, longest_wait=0.01))


def note_links(monkeypatch: pytest.MonkeyPatch, coordinator: Coordinator) -> list[Link]:
    """All links to workers that are opened from now on."""
    opened: list[Link] = []
    connect = coordinator.transport.connect

    def noted(rank: int, endpoint: Any, timeout: float) -> Link:
        opened.append(connect(rank, endpoint, timeout))
        return opened[-1]

    monkeypatch.setattr(coordinator.transport, "connect", noted)
    return opened


def test_a_worker_that_is_wrong_whenever_it_comes_up_leaves_no_link_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with supervised(2, replicas=2, options=QUICK) as (coordinator, world):
        opened, make_worker = note_links(monkeypatch, coordinator), world.make_worker

        def kept(spec: WorkerSpec) -> ExpertWorker:
            """A worker that holds its experts when it comes up, as one that a coordinator has left."""
            worker = make_worker(spec)
            worker.load(list(CATALOG.modules))
            return worker

        monkeypatch.setattr(world, "make_worker", kept)
        coordinator.told.odd_pids.update(range(world.machine.num_started + 1, 1000))
        world.machine.kill(1)
        coordinator.until(lambda: len(opened) > 3, coordinator.check_equal)
        assert coordinator.workers()[1].last_reason is FailureReason.CORRUPT
        assert not [link for link in opened[:-1] if link.failure is None]
