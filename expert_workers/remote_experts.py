"""RemoteExperts: the experts of a model on workers, as one thing: dispatched, supervised, exchanged."""

from collections import Counter
from collections.abc import Callable

from expert_workers.dispatch.pool import ExpertPool
from expert_workers.status import WorkerStatus
from expert_workers.supervision.supervisor import Supervisor
from moe_model.layers.dispatch import ExpertKey

# Seconds.
CLOSE_MOMENT = 1.0


class RemoteExperts:
    """RunningExperts on workers, and these Workers: a pool dispatches, a supervisor says which worker holds
    what."""

    answers_travel = True

    def __init__(self, pool: ExpertPool, supervisor: Supervisor, close: Callable[[], None]) -> None:
        """`close` ends the workers, or leaves them; it is called last."""
        self._pool, self._supervisor, self._close = pool, supervisor, close
        # The pool's own methods: a step calls these for every layer, and nothing lies between.
        self.forward, self.begin, self.finish = pool.forward, pool.begin, pool.finish
        self.in_c, self.take_over = pool.in_c, pool.take_over
        self.switch, self.idle, self.tell_dispatches = pool.switch, pool.idle, pool.tell_dispatches
        self.wait_for_lost, self.found = pool.wait_for_lost, pool.found
        self.missing_experts, self.stats = pool.missing_experts, pool.stats
        self.prepare, self.release, self.scale = supervisor.prepare, supervisor.release, supervisor.scale

    def holders(self, key: ExpertKey) -> tuple[int, ...]:
        """The ranks of the workers that hold a module. Any thread may ask."""
        return tuple(worker.rank for worker in self._supervisor.workers() if key in worker.held)

    @property
    def num_replicas(self) -> int:
        """On how many workers the expert is that is on the fewest."""
        held = Counter(key for w in self._supervisor.workers() if w.is_ready for key in w.held)
        return min(held[key] for key in self._supervisor.expert_ids())

    def topology(self) -> tuple[WorkerStatus, ...]:
        """Any thread may ask."""
        stats, expert_ids = self._pool.stats().workers, self._supervisor.expert_ids()
        return tuple(
            worker.status(expert_ids, stats[worker.rank].rows if worker.rank in stats else 0)
            for worker in self._supervisor.workers()
        )

    def close(self) -> None:
        # What is under way has a moment; what still waits for a worker then ends with the worker.
        self._supervisor.close(CLOSE_MOMENT)
        self._pool.close()
        self._close()
        self._supervisor.close()
