"""Links to workers that are objects in this process: the last resort, one-process pools, and tests.

A call runs where it is sent, so nothing is ever late here.
"""

import time
from collections.abc import Callable, Sequence

from expert_workers.transports.base import Answerer, Failure, FailureReason, Pending
from expert_workers.wire import ExpertCall, ExpertReply
from moe_model.errors import ExpertMeshError, FencedError


class LocalCall:
    """A Pending that is over."""

    __slots__ = ("arrived", "outcome")

    def __init__(self, outcome: ExpertReply | Failure) -> None:
        self.outcome = outcome
        self.arrived = time.perf_counter()


class LocalLink:
    """A Link to an object."""

    frames = None

    def __init__(self, rank: int, worker: Answerer) -> None:
        self.rank = rank
        self.failure: Failure | None = None
        self._worker = worker

    def send(self, call: ExpertCall) -> LocalCall:
        if self.failure is not None:
            return LocalCall(self.failure)
        try:
            return LocalCall(self._worker.compute(call))
        except FencedError as error:
            return LocalCall(Failure(FailureReason.FENCED, str(error)))
        except ExpertMeshError as error:
            return LocalCall(Failure(FailureReason.RAISED, str(error)))

    def look(self) -> None:
        pass

    def fail(self, reason: FailureReason, message: str) -> None:
        if self.failure is None:
            self.failure = Failure(reason, message)

    def close(self) -> None:
        self.fail(FailureReason.DIED, f"worker {self.rank}: is closed")


class LocalPlane:
    """A Plane where all is there already."""

    def wait(
        self, pendings: Sequence[Pending], deadline: float, is_enough: Callable[[], bool] | None = None
    ) -> None:
        pass
