"""PendingChanges: callers that wait until all that is wanted is loaded, and all that leave have left."""

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from expert_workers.status import Scaled
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from moe_model.errors import ExpertMeshError


@dataclass(slots=True)
class PendingChange:
    """`keys` are modules that it adds; `is_start`: the first of all, which any failure ends."""

    num_before: int = 0
    keys: Keys = frozenset()
    is_start: bool = False
    num_moved: int = 0
    started: float = field(default_factory=time.monotonic)
    future: "Future[Scaled]" = field(default_factory=Future)


class PendingChanges:
    """Belongs to the supervisor's thread."""

    def __init__(self) -> None:
        self._open: list[PendingChange] = []

    @property
    def is_starting(self) -> bool:
        return any(change.is_start for change in self._open)

    def add(self, change: PendingChange) -> None:
        self._open.append(change)

    def moved(self, num_modules: int) -> None:
        for change in self._open:
            change.num_moved += num_modules

    def fail_start(self, error: ExpertMeshError) -> bool:
        """Tells the caller that waits for the start; whether there is one."""
        starts = [change for change in self._open if change.is_start]
        for change in starts:
            self._fail(change, error)
        return bool(starts)

    def fail_new(self, loading: Keys, error: ExpertMeshError) -> Keys:
        """Loading these modules has failed, and so have the changes that add them; returns what those add."""
        failed = [change for change in self._open if change.keys & loading]
        for change in failed:
            self._fail(change, error)
        return frozenset(key for change in failed for key in change.keys)

    def settle(
        self, workers: Collection[SupervisedWorker], wanted: Mapping[int, Keys]
    ) -> list[PendingChange]:
        """If all is as it shall be, tells the callers that wait; returns their changes."""
        if not are_settled(workers, wanted):
            return []
        num_ready = sum(w.is_ready for w in workers)
        settled, self._open = self._open, []
        now = time.monotonic()
        for change in settled:
            scaled = Scaled(change.num_before, num_ready, change.num_moved, now - change.started)
            change.future.set_result(scaled)
        return settled

    def _fail(self, change: PendingChange, error: ExpertMeshError) -> None:
        self._open.remove(change)
        change.future.set_exception(error)


def are_settled(workers: Collection[SupervisedWorker], wanted: Mapping[int, Keys]) -> bool:
    """Whether all is as it shall be."""
    return all(_is_settled(w, wanted.get(w.rank, frozenset())) for w in workers)


def _is_settled(worker: SupervisedWorker, wish: Keys) -> bool:
    """Whether a worker is as it shall be. One that is lost, and whose part others have, is not waited for."""
    if worker.is_leaving:
        return False
    return wish <= worker.held if worker.is_ready else worker.lost_at is not None and not wish
