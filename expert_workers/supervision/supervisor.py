"""Supervisor: brings expert workers up, looks after them, and says which holds what.

The front of a ControlLoop, for other threads.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from expert_workers.dispatch.routes import Address
from expert_workers.status import Scaled
from expert_workers.supervision.control_loop import ControlLoop
from expert_workers.supervision.pending_changes import PendingChange
from expert_workers.supervision.worker_state import SupervisedWorker
from expert_workers.transports.base import Failure
from expert_workers.transports.fleet import Machine
from moe_model.errors import BoundWorkersError, ClusterError, WorkerStartError
from moe_model.halt import Halt
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule


class Supervisor:
    """A Rescuer. Any thread may call it. What waits for workers raises HaltedError when it is closed."""

    def __init__(self, control: ControlLoop) -> None:
        """Begins to look after the workers that `control` knows."""
        self._control = control
        self._loop = control.loop
        self._halt = Halt()
        self._loop.start()

    def start(
        self,
        num_workers: int,
        timeout: float,
        num_loaded: Callable[[], int] = lambda: 0,
        machines: Sequence[Machine] | None = None,
        found: Mapping[int, str] | None = None,
    ) -> None:
        """Brings up workers 0 to N - 1, or those of the machines, and returns when all is loaded.
        WorkerStartError names the first that cannot.

        `timeout`: seconds in which they start, and then again as long as `num_loaded`, the modules that have
        been loaded, has grown in them: a large model takes its time. `found`: as `ControlLoop.begin`.
        """
        change = PendingChange(is_start=True)
        self._post(partial(self._control.begin, num_workers, change, machines, found))
        while True:
            before = num_loaded()
            try:
                self._halt.result(change.future, timeout)
            except TimeoutError:
                if num_loaded() > before:
                    continue
                waiting = [str(worker.rank) for worker in self.workers() if not worker.is_ready]
                names = ", ".join(waiting) or "some"
                raise WorkerStartError(f"worker {names}: not ready within {timeout:g} s") from None
            return

    def scale(self, num_workers: int, timeout: float = 600.0) -> Scaled:
        """Returns when there are so many and each holds its part. Raises ExpertMeshError, BoundWorkersError
        where the machines say how many."""
        if self._control.follows_machines:
            raise BoundWorkersError("the workers follow the machines of the cluster")
        change = PendingChange()
        try:
            return self._wait(change, partial(self._control.resize, num_workers, change), timeout)
        except TimeoutError:
            raise ClusterError(f"not {num_workers} workers within {timeout:g} s; it goes on") from None

    def prepare(self, module: ExpertModule, timeout: float = 300.0) -> None:
        """Returns when a new module is wherever it shall be. Raises ExpertMeshError; then it is nowhere."""
        change = PendingChange(keys=frozenset([module.key]))
        try:
            self._wait(change, partial(self._control.add, module, change), timeout)
        except TimeoutError:
            self.release([module.key])
            raise ClusterError(
                f"expert {module.expert} of layer {module.layer}: not loaded in time"
            ) from None

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """No request uses these modules any more."""
        self._loop.post(partial(self._control.release, tuple(keys)))

    def lost(self, address: Address, failure: Failure) -> None:
        self._loop.post(partial(self._control.lost, address, failure))

    def rescue(self, keys: Sequence[ExpertKey]) -> None:
        self._loop.post(partial(self._control.rescue, tuple(keys)))

    @property
    def is_fenced(self) -> bool:
        """Whether the workers are another coordinator's now."""
        return self._control.is_fenced

    def workers(self) -> list[SupervisedWorker]:
        """To be read only."""
        return self._control.workers()

    def expert_ids(self) -> dict[ExpertKey, int]:
        """What people call each module."""
        return self._control.expert_ids()

    def halt(self) -> None:
        """Callers that wait for a change, now or later, get HaltedError. Idempotent."""
        self._halt.set()

    def close(self, timeout: float = 10.0) -> bool:
        """Ends what is going on; the workers stay. False when some of it outlasts `timeout`. Idempotent."""
        self.halt()
        return self._loop.close(timeout)

    def _wait(self, change: PendingChange, event: Callable[[], None], timeout: float) -> Scaled:
        self._post(event)
        return self._halt.result(change.future, timeout)

    def _post(self, event: Callable[[], None]) -> None:
        self._halt.check()
        self._loop.post(event)
