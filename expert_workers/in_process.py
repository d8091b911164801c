"""InProcessTransport: the workers are objects in this process. For one-process serving and for tests.

A call runs where it is sent, so nothing is ever late here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from expert_workers.transport import Failure, FailureReason, Pending
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker import WorkerInfo
from moe_model.errors import ExpertMeshError

T = TypeVar("T")


class LocalWorker(Protocol):
    """What this transport needs of a worker."""

    def compute(self, call: ExpertCall) -> ExpertReply: ...

    def describe(self) -> WorkerInfo: ...


@dataclass(frozen=True, slots=True)
class _Done(Generic[T]):
    rank: int
    outcome: T | Failure


class InProcessTransport:
    """A Transport over plain objects."""

    def __init__(self, workers: Mapping[int, LocalWorker]) -> None:
        self._workers = dict(workers)

    @property
    def ranks(self) -> Sequence[int]:
        return tuple(sorted(self._workers))

    def send(self, rank: int, call: ExpertCall) -> Pending[ExpertReply]:
        worker = self._workers[rank]
        return _run(rank, lambda: worker.compute(call))

    def describe(self, rank: int) -> Pending[WorkerInfo]:
        return _run(rank, self._workers[rank].describe)

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]:
        return [cast("_Done[T]", pending).outcome for pending in pendings]

    def close(self) -> None:
        pass


def _run(rank: int, work: Callable[[], T]) -> _Done[T]:
    try:
        return _Done(rank, work())
    except ExpertMeshError as error:
        return _Done(rank, Failure(FailureReason.RAISED, str(error)))
