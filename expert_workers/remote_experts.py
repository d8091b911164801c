"""RemoteExperts: the experts of a model on workers, as one thing: dispatched, supervised, exchanged."""

from collections import Counter
from collections.abc import Callable, Sequence

from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.slices import SlicedDispatches
from expert_workers.status import WorkerStatus
from expert_workers.supervision.supervisor import Supervisor
from moe_model.errors import ExpertMeshError
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.experts import ExpertBackend
from moe_model.versions.expert_versions import Catalog, ExpertModule, slice_keys

# Seconds.
CLOSE_MOMENT = 1.0


class RemoteExperts:
    """RunningExperts on workers, and these Workers: a pool dispatches, a supervisor says which worker holds
    what."""

    answers_travel = True

    def __init__(
        self,
        pool: ExpertPool,
        supervisor: Supervisor,
        close: Callable[[], None],
        num_slices: int = 1,
        own_certificate_end: float | None = None,
    ) -> None:
        """`close` ends the workers, or leaves them; it is called last. Pool and supervisor know slices of
        experts only, so many of each; the engine knows whole ones."""
        self._pool, self._supervisor, self._close = pool, supervisor, close
        self._num_slices = num_slices
        self._own_certificate_end = own_certificate_end
        # Methods of the pool's own: a step calls these for every layer, and nothing lies between.
        backend: ExpertBackend = pool if num_slices == 1 else SlicedDispatches(pool, num_slices)
        self.forward, self.begin, self.finish = backend.forward, backend.begin, backend.finish
        self.in_c, self.take_over = backend.in_c, backend.take_over
        self.idle, self.tell_dispatches = pool.idle, pool.tell_dispatches
        self.wait_for_lost, self.found = pool.wait_for_lost, pool.found
        self.stats, self.scale = pool.stats, supervisor.scale

    def switch(self, catalog: Catalog) -> None:
        """As RunningExperts."""
        self._pool.switch(catalog.sliced(self._num_slices))

    def prepare(self, module: ExpertModule) -> None:
        """As RunningExperts."""
        prepared: list[ExpertKey] = []
        try:
            for each in module.slices(self._num_slices):
                self._supervisor.prepare(each)
                prepared.append(each.key)
        except ExpertMeshError:
            self._supervisor.release(prepared)
            raise

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """As RunningExperts."""
        self._supervisor.release(slice_keys(keys, self._num_slices))

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        """As RunningExperts: those of which any slice is missing."""
        return tuple(dict.fromkeys(module.whole for module in self._pool.missing_experts()))

    def holders(self, key: ExpertKey) -> tuple[int, ...]:
        """The ranks of the workers that hold a module, or a slice of it. Any thread may ask."""
        slices = frozenset(slice_keys([key], self._num_slices))
        return tuple(worker.rank for worker in self._supervisor.workers() if slices & worker.held)

    @property
    def num_replicas(self) -> int:
        """On how many workers the expert is, or the slice of one, that is on the fewest."""
        held = Counter(key for w in self._supervisor.workers() if w.is_ready for key in w.held)
        return min(held[key] for key in self._supervisor.expert_ids())

    @property
    def certificate_end(self) -> float | None:
        """When the first certificate ends, this process's or a worker's, in seconds since 1970; None without
        TLS between machines."""
        theirs = [worker.info.certificate_end for worker in self._supervisor.workers() if worker.info]
        return min((end for end in (self._own_certificate_end, *theirs) if end is not None), default=None)

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
