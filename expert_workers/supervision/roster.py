"""Roster: the workers that there shall be, and those that are leaving.

Belongs to the supervisor's thread.
"""

from collections.abc import Callable
from itertools import count

from expert_workers.dispatch.routes import HERE
from expert_workers.supervision.crew import Crew
from expert_workers.supervision.last_resort import LastResort
from expert_workers.supervision.restart_policy import RestartOptions, RestartPolicy
from expert_workers.supervision.worker_state import SupervisedWorker


class Roster:
    """Workers by rank; with `here`, this process as the last resort, they are all that hold experts."""

    def __init__(self, restarts: RestartOptions, here: LastResort) -> None:
        self._restarts = restarts
        self._workers: dict[int, SupervisedWorker] = {}
        self._here = here

    @property
    def workers(self) -> list[SupervisedWorker]:
        """By rank. Any thread may ask, and then only read."""
        return sorted(self._workers.values(), key=lambda worker: worker.rank)

    @property
    def holders(self) -> list[SupervisedWorker]:
        """The workers, and this process if it holds experts or is loading some."""
        here = self._here.worker
        return self.workers if here is None else [*self.workers, here]

    def get(self, rank: int) -> SupervisedWorker | None:
        return self._here.worker if rank == HERE else self._workers.get(rank)

    @property
    def num_staying(self) -> int:
        return sum(not worker.is_leaving for worker in self._workers.values())

    def join(self, rank: int, node_id: str | None) -> None:
        """There is this worker, on that machine."""
        self._workers[rank] = self._new(rank, node_id)

    def follow(self, crew: Crew) -> bool:
        """There shall be these; whether others than before. New ones get the lowest ranks that are free."""
        leaving = {rank for rank, worker in self._workers.items() if worker.is_leaving}
        for rank, worker in self._workers.items():
            worker.is_leaving = rank not in crew.staying
        free = (rank for rank in count() if rank not in self._workers)
        for node_id in crew.coming:
            self.join(next(free), node_id)
        return bool(crew.coming) or leaving != {r for r, w in self._workers.items() if w.is_leaving}

    def ended(self, rank: int) -> None:
        """Its process is gone. It may be wanted again in the meantime."""
        worker = self._workers.pop(rank)
        if not worker.is_leaving:
            self._workers[rank] = self._new(rank, worker.bound_to)

    def forgive(self, worker: SupervisedWorker) -> None:
        """It is not to blame for what failed."""
        worker.policy = RestartPolicy(self._restarts)

    def begin(self, worker: SupervisedWorker) -> Callable[[], bool]:
        """A job is at the worker from now on. Returns what tells, when the job ends, whether it still counts;
        then the worker is free for the next. It does not where the worker was given up in the meantime, or
        fenced, which begins another job."""
        worker.is_busy = True
        worker.num_jobs += 1
        number = worker.num_jobs

        def end() -> bool:
            if self.get(worker.rank) is not worker or worker.num_jobs != number:
                return False
            worker.is_busy = False
            return True

        return end

    def _new(self, rank: int, node_id: str | None) -> SupervisedWorker:
        return SupervisedWorker(rank, RestartPolicy(self._restarts), node_id)
