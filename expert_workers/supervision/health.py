"""Health: which worker is to be asked whether it lives, and whether its weights are what they were. Pure.

A canary is what a module makes of one row that never changes. A process must say the same every time, to the
last bit; two processes may differ by their kernels' rounding.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from expert_workers.supervision.worker_state import SupervisedWorker
from expert_workers.wire import Array
from moe_model.layers.dispatch import ExpertKey

# So many bad checks in a row mean that the cluster is gone.
_PATIENCE = 2
_UNANSWERED = "the head of the Ray cluster does not answer"
# Of a vector's length, how far two processes' answers may be apart.
_TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class HealthOptions:
    """Seconds; an interval of 0 is never. A check of the cluster that takes longer than `check_timeout` is a
    bad one."""

    beat_interval: float = 1.0
    check_interval: float = 1.0
    check_timeout: float = 5.0
    canary_interval: float = 30.0


class Health:
    """Belongs to the supervisor's thread."""

    def __init__(self, options: HealthOptions) -> None:
        self._options = options
        self._heartbeat_at: dict[int, float] = {}
        self._canary_at: dict[int, float] = {}
        self._asked: set[int] = set()
        self._check_at = 0.0
        # When the check that is under way counts as a bad one, once more.
        self._late_at: float | None = None
        self._problem, self._num_bad_checks = "", 0

    def is_check_due(self, now: float) -> bool:
        """Whether to look after the cluster; then nothing is due before `check_done`."""
        if self._late_at is not None or now < self._check_at or not self._options.check_interval:
            return False
        self._late_at = now + self._options.check_timeout
        return True

    def check_done(self, problem: str, now: float) -> None:
        """What came of it; empty when all is well."""
        self._check_at, self._late_at = now + self._options.check_interval, None
        self._note_check(problem)

    def why_gone(self, now: float) -> str:
        """Why the cluster is gone for good: two checks in a row were bad. Empty while it is not."""
        if self._late_at is not None and now >= self._late_at:
            self._late_at = now + self._options.check_timeout
            self._note_check(_UNANSWERED)
        return self._problem if self._num_bad_checks >= _PATIENCE else ""

    def _note_check(self, problem: str) -> None:
        self._problem = problem
        self._num_bad_checks = self._num_bad_checks + 1 if problem else 0

    def due_heartbeats(self, workers: Iterable[SupervisedWorker], now: float) -> list[SupervisedWorker]:
        """The workers to be asked now. None is asked again until `heartbeat_done` has said that its last
        answer is there, or will not come."""
        interval = self._options.beat_interval
        found = []
        for worker in workers:
            is_due = now >= self._heartbeat_at.setdefault(worker.rank, now + interval)
            if interval and is_due and worker.is_ready and worker.rank not in self._asked:
                self._heartbeat_at[worker.rank] = now + interval
                self._asked.add(worker.rank)
                found.append(worker)
        return found

    def heartbeat_done(self, rank: int) -> None:
        self._asked.discard(rank)

    def due_canaries(
        self, workers: Iterable[SupervisedWorker], now: float
    ) -> list[tuple[SupervisedWorker, list[ExpertKey]]]:
        """The workers whose weights are to be looked at now, and with which modules."""
        interval = self._options.canary_interval
        found = []
        for worker in workers:
            is_due = now >= self._canary_at.setdefault(worker.rank, now + interval)
            if interval and is_due and worker.is_ready and not worker.is_busy and worker.canaries:
                self._canary_at[worker.rank] = now + interval
                found.append((worker, sorted(worker.canaries)))
        return found


def why_changed(worker: SupervisedWorker, canaries: Mapping[ExpertKey, Array]) -> str:
    """What is wrong with these weights, compared with what they said at first; empty when nothing is."""
    for (layer, slot), said in canaries.items():
        before = worker.canaries.get((layer, slot))
        if before is not None and not np.array_equal(before, said):
            return f"module {slot} of layer {layer} computes something else than when it was loaded"
    return ""


def odd_one(
    worker: SupervisedWorker, canaries: Mapping[ExpertKey, Array], workers: Iterable[SupervisedWorker]
) -> str:
    """What is wrong with these weights, compared with what other workers make of the same modules."""
    others = [other for other in workers if other is not worker and other.is_ready]
    for (layer, slot), said in canaries.items():
        for other in others:
            theirs = other.canaries.get((layer, slot))
            if theirs is not None and not _are_close(said, theirs):
                return f"module {slot} of layer {layer} computes something else than worker {other.rank}'s"
    return ""


def _are_close(one: Array, other: Array) -> bool:
    return bool(np.linalg.norm(one - other) <= _TOLERANCE * np.linalg.norm(other) + 1e-6)
