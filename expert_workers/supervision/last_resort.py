"""LastResort: the coordinator's own process, which holds experts that no worker can take.

Belongs to the supervisor's thread.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from expert_workers.dispatch.routes import HERE, Address
from expert_workers.supervision.restart_policy import RestartOptions, RestartPolicy
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from moe_model.versions.expert_versions import ExpertModule

# Loads modules into this process, and has the pool connected to them.
LoadHere = Callable[[Sequence[ExpertModule]], Address]


class LastResort:
    """What it holds is one more worker to the rest, of rank HERE, for as long as it holds anything."""

    def __init__(self, load: LoadHere | None, restarts: RestartOptions) -> None:
        """`load` None: this process holds no experts, whatever happens."""
        self._load = load
        self._policy = RestartPolicy(restarts)
        self.worker: SupervisedWorker | None = None

    def due(self, missing: Keys, known: Keys, now: float) -> Keys:
        """What to hold from now on, so that `missing` is not missing any more; nothing where no load is due:
        there is none, one is under way, or the last has just failed. `known` are the modules in use."""
        worker = self.worker
        held: Keys = frozenset() if worker is None else worker.held
        is_busy = worker is not None and worker.is_busy
        if self._load is None or is_busy or now < self._policy.next_at or missing <= held:
            return frozenset()
        return (held | missing) & known

    def begin(self, modules: Iterable[ExpertModule]) -> tuple[SupervisedWorker, Callable[[], Address]]:
        """This process as a worker, and the job that loads them into it."""
        assert self._load is not None, "something was due"
        self.worker = self.worker or SupervisedWorker(HERE, self._policy)
        return self.worker, partial(self._load, list(modules))

    def loaded(self, held: Keys, address: Address) -> None:
        assert self.worker is not None, "it has loaded"
        self.worker.address, self.worker.held = address, held
        self.worker.policy.ready(time.monotonic())

    def failed(self) -> None:
        """It could not load, or gave a wrong answer: it holds nothing."""
        self._policy.failed(time.monotonic())
        self.worker = None

    def drop(self, keys: Keys) -> None:
        """These are held elsewhere. Experts of this process go all together."""
        if self.worker is not None and keys >= self.worker.held:
            self.worker = None
