"""WorkerJobs: starts what is to be done at a worker, and takes in what comes of it.

Belongs to the supervisor's thread; the jobs themselves run on others.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from expert_workers.dispatch.routes import HERE
from expert_workers.supervision.actions import Action, BringUp, Drop, End, Load
from expert_workers.supervision.desired_state import DesiredState
from expert_workers.supervision.endings import Endings
from expert_workers.supervision.event_loop import EventLoop
from expert_workers.supervision.health import odd_one
from expert_workers.supervision.jobs import Jobs, Loaded, Up
from expert_workers.supervision.last_resort import LastResort
from expert_workers.supervision.options import SupervisionObserver
from expert_workers.supervision.pending_changes import PendingChanges
from expert_workers.supervision.roster import Roster
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from expert_workers.transports.base import Failure, FailureReason
from expert_workers.transports.fleet import Supply
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.errors import WorkerStartError
from moe_model.layers.dispatch import ExpertKey

_log = logging.getLogger(__name__)

# For so long after a loss, a process that is not there is one that Ray has yet to start.
_RESTART_TIME = 30.0
_SILENT = (FailureReason.DIED, FailureReason.LATE)
_KILLED = (FailureReason.LATE, FailureReason.INVALID, FailureReason.CORRUPT, FailureReason.RAISED)


class WorkerJobs:
    def __init__(
        self,
        jobs: Jobs,
        loop: EventLoop,
        roster: Roster,
        here: LastResort,
        desired: DesiredState,
        pending: PendingChanges,
        endings: Endings,
        observer: SupervisionObserver | None,
    ) -> None:
        self._jobs, self._loop = jobs, loop
        self._roster, self._here, self._desired = roster, here, desired
        self._pending, self._endings, self._observer = pending, endings, observer

    def run(
        self,
        worker: SupervisedWorker,
        work: Callable[[], Any],
        done: Callable[[Any], None],
        loading: Keys = frozenset(),
    ) -> None:
        """Runs `work` on another thread, as the one job at this worker; `done` takes what comes of it."""
        still_counts = self._roster.begin(worker)

        def end(result: Any) -> None:
            if not still_counts():
                return
            if isinstance(result, Failure):
                self._failed(worker, result, loading)
            else:
                done(result)

        self._loop.submit(work, end)

    def act(self, action: Action) -> None:
        """Does what is due at one worker."""
        if action.rank == HERE:
            assert isinstance(action, Drop), "what this process shall hold, it is told by load_here"
            self._here.drop(action.keys)
            return
        worker = self._roster.get(action.rank)
        assert worker is not None, "it was looked at"
        match action:
            case BringUp(rank):
                is_back = worker.lost_at is not None
                bring_up = partial(
                    self._jobs.bring_up, rank, self._desired.keys, worker.bound_to, is_back=is_back
                )
                self.run(worker, bring_up, partial(self._up, worker))
            case Load(rank, keys):
                is_whole, desired = self._pending.is_starting, self._desired
                first, supply = supply_of(keys, worker, self._roster.workers)
                modules = [*desired.modules(first), *desired.modules(keys - first)]
                number = worker.num_jobs + 1
                on_part = None if is_whole else partial(self._part_loaded, worker, number, supply.is_urgent)
                load = partial(
                    self._jobs.load, rank, modules, is_whole=is_whole, supply=supply, on_part=on_part
                )
                self.run(worker, load, partial(self._loaded, worker, keys), keys)
            case Drop(rank, keys):
                drop = partial(self._jobs.drop, rank, sorted(keys))
                self.run(worker, drop, partial(self._dropped, worker))
            case End(rank):
                worker.address = None  # It is not lost: from here on it does not matter how it ends.
                self.run(worker, partial(self._jobs.end, rank), lambda _: self._ended(rank))

    def _ended(self, rank: int) -> None:
        _log.info("worker %d has left", rank)
        self._roster.ended(rank)

    def load_here(self, missing: Keys, now: float) -> None:
        """Loads what no worker holds into this process, if it may and can."""
        due = self._here.due(missing, self._desired.keys, now)
        if due:
            _log.warning("loading %d experts into the coordinator", len(due))
            here, load = self._here.begin(self._desired.modules(due))
            self.run(here, load, partial(self._here.loaded, due))

    def lose(self, worker: SupervisedWorker, failure: Failure) -> None:
        """A worker does not answer any more, or must not be believed."""
        _log.warning("worker %d lost (%s): %s", worker.rank, failure.reason, failure.message)
        if worker.is_here:
            self._here.failed()
            return
        if failure.reason is FailureReason.FENCED:
            self._endings.fence(failure)
        info, address = worker.info, worker.address
        worker.note_loss(failure, time.monotonic())
        if address is None:
            return
        if self._observer is not None:
            self._observer.lost(worker.rank, failure.reason)
        if info is not None and failure.reason in _KILLED:
            self.run(worker, partial(self._jobs.fence, info, address), _ignore)
        elif info is not None and failure.reason is FailureReason.DIED:
            self._loop.submit(partial(self._jobs.was_oom, info), partial(_explain, worker))

    def _up(self, worker: SupervisedWorker, up: Up) -> None:
        before = worker.info
        worker.note_held(up.info)
        worker.address = up.address
        worker.canaries.clear()
        worker.policy.ready(time.monotonic())
        if worker.lost_at is not None:
            _log.info("worker %d is back, as process %d", worker.rank, up.info.pid)
            if self._observer is not None and before is not None and before.pid != up.info.pid:
                self._observer.restarted(worker.rank, worker.last_reason or FailureReason.DIED)
        worker.lost_at = None
        self._note_canaries(worker, up.canaries)

    def _part_loaded(self, worker: SupervisedWorker, number: int, is_urgent: bool, loaded: Loaded) -> bool:
        """On the thread of the worker's job of this number. What is there gets rows at once. The rest is not
        loaded for a worker that leaves, and is loaded later where requests have come to wait for others."""
        self._loop.post(partial(self._note_part, worker, number, loaded))
        return not worker.is_leaving and (is_urgent or not worker.is_needed)

    def _note_part(self, worker: SupervisedWorker, number: int, loaded: Loaded) -> None:
        is_current = self._roster.get(worker.rank) is worker and worker.num_jobs == number
        if is_current and worker.is_ready:
            worker.note_held(loaded.info)
            self._note_canaries(worker, loaded.canaries)

    def _loaded(self, worker: SupervisedWorker, keys: Keys, loaded: Loaded) -> None:
        worker.note_held(loaded.info)
        if loaded.failure is not None:
            self._failed(worker, loaded.failure, keys - worker.held)
        self._note_canaries(worker, loaded.canaries)

    def _dropped(self, worker: SupervisedWorker, info: WorkerInfo) -> None:
        worker.note_held(info)
        for key in set(worker.canaries) - worker.held:
            del worker.canaries[key]

    def _note_canaries(self, worker: SupervisedWorker, canaries: Mapping[ExpertKey, Array]) -> None:
        worker.canaries.update(canaries)
        odd = odd_one(worker, canaries, self._roster.workers)
        if odd:
            self.lose(worker, Failure(FailureReason.CORRUPT, f"worker {worker.rank}: {odd}"))

    def _failed(self, worker: SupervisedWorker, failure: Failure, loading: Keys) -> None:
        """A job has failed. That ends a start, unless the process may yet answer."""
        if self._pending.is_starting and failure.reason not in _SILENT:
            self._endings.fail_start(failure)
        elif self._endings.has_failed_to_start:
            return
        elif worker.is_ready and failure.reason is FailureReason.RAISED:
            self._could_not_load(worker, failure, loading)
        elif worker.is_here:
            _log.error("experts cannot be loaded here: %s", failure.message)
            self._here.failed()
        elif failure.reason in _SILENT and _is_expected_back(worker):
            worker.policy.soon(time.monotonic())
        else:
            self.lose(worker, failure)

    def _could_not_load(self, worker: SupervisedWorker, failure: Failure, loading: Keys) -> None:
        """What it has, it can still compute."""
        _log.error("%s", failure.message)
        worker.problem = failure.message
        worker.policy.failed(time.monotonic())
        self._desired.remove(self._pending.fail_new(loading, WorkerStartError(failure.message)))
        if not loading <= self._desired.keys:
            # The new modules are to blame, and not the workers that were to load them.
            self._roster.forgive(worker)


def supply_of(
    keys: Keys, worker: SupervisedWorker, workers: Iterable[SupervisedWorker]
) -> tuple[Keys, Supply]:
    """Others that hold some of the modules can lend what they were read from. Those that none of them holds,
    which are returned as well, come first: requests may wait for them."""
    others = [other for other in workers if other is not worker and other.is_ready]
    first = keys.difference(*(other.held for other in others))
    holders = tuple(other.rank for other in others if other.held & keys)
    is_far = worker.info is not None and not worker.info.has_files
    return first, Supply(holders, is_urgent=bool(first), is_far=is_far)


def _is_expected_back(worker: SupervisedWorker) -> bool:
    """Until Ray has started it again, it says that it is gone, or nothing at all."""
    return worker.lost_at is not None and time.monotonic() - worker.lost_at < _RESTART_TIME


def _explain(worker: SupervisedWorker, was_oom: object) -> None:
    """Why a process is gone shows only once it is."""
    if was_oom is True and worker.last_reason is FailureReason.DIED:
        worker.last_reason = FailureReason.OOM
        worker.last_loss = f"worker {worker.rank}: was killed for want of memory"
        _log.warning("%s", worker.last_loss)


def _ignore(_: object) -> None:
    """Nothing follows from it."""
