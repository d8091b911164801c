"""HealthWatch: asks the cluster and the workers how they are, and loses those that are not well.

Belongs to the supervisor's thread.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from expert_workers.dispatch.routes import Address
from expert_workers.supervision.event_loop import EventLoop
from expert_workers.supervision.health import Health, why_changed
from expert_workers.supervision.jobs import Jobs
from expert_workers.supervision.worker_jobs import WorkerJobs
from expert_workers.supervision.worker_state import SupervisedWorker
from expert_workers.transports.base import Failure, FailureReason
from expert_workers.transports.fleet import Machine
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.layers.dispatch import ExpertKey


class HealthWatch:
    def __init__(
        self,
        health: Health,
        jobs: Jobs,
        loop: EventLoop,
        workers: WorkerJobs,
        seen: Callable[[Sequence[Machine]], None] | None,
    ) -> None:
        """`seen` is told of the machines that could run workers; None: nothing depends on them, which spares
        the cluster a question."""
        self._health, self._jobs, self._loop, self._workers = health, jobs, loop, workers
        self._seen = seen

    def look(self, workers: Sequence[SupervisedWorker], now: float) -> None:
        """Asks each that is due."""
        if self._health.is_check_due(now):
            check = partial(self._jobs.check, with_machines=self._seen is not None)
            self._loop.submit(check, self._check_done)
        for worker in self._health.due_heartbeats(workers, now):
            done = partial(self._heartbeat_done, worker, worker.address)
            self._loop.submit(partial(self._jobs.beat, worker.rank), done)
        for worker, keys in self._health.due_canaries(workers, now):
            canary = partial(self._jobs.canary, worker.rank, keys)
            self._workers.run(worker, canary, partial(self._canary_done, worker))

    def _check_done(self, result: Sequence[Machine] | Failure) -> None:
        problem = result.message if isinstance(result, Failure) else ""
        self._health.check_done(problem, time.monotonic())
        if self._seen is not None and not isinstance(result, Failure):
            self._seen(result)

    def _heartbeat_done(
        self, worker: SupervisedWorker, address: Address | None, result: WorkerInfo | Failure
    ) -> None:
        self._health.heartbeat_done(worker.rank)
        if worker.address is None or worker.address != address:
            return
        if isinstance(result, Failure):
            self._workers.lose(worker, result)
        elif worker.info is not None and result.pid != worker.info.pid:
            died = Failure(FailureReason.DIED, f"worker {worker.rank}: is another process now")
            self._workers.lose(worker, died)

    def _canary_done(self, worker: SupervisedWorker, canaries: Mapping[ExpertKey, Array]) -> None:
        changed = why_changed(worker, canaries)
        if changed:
            corrupt = Failure(FailureReason.CORRUPT, f"worker {worker.rank}: {changed}")
            self._workers.lose(worker, corrupt)
