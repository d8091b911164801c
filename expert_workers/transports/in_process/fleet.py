"""LocalFleet: workers as objects in this process. For one-process pools and for tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from expert_workers.transports.base import Failure, FailureReason, Link, WorkerFailureError
from expert_workers.transports.in_process.links import LocalLink
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.errors import ExpertMeshError, FencedError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule


class LocalFleet:
    """A Fleet. `spec` is every worker's, but for its rank."""

    def __init__(self, spec: WorkerSpec, make: Callable[[WorkerSpec], ExpertWorker] = ExpertWorker) -> None:
        self._spec = spec
        self._make = make
        self.workers: dict[int, ExpertWorker] = {}

    def find(self) -> frozenset[int]:
        return frozenset(self.workers)

    def start(self, rank: int) -> None:
        self.workers[rank] = self._make(replace(self._spec, rank=rank))

    def describe(self, rank: int, timeout: float) -> WorkerInfo:
        return self._worker(rank).describe()

    def beat(self, rank: int, timeout: float) -> WorkerInfo:
        return self.describe(rank, timeout)

    def claim(self, rank: int, epoch: int, owner: str, *, by_force: bool, timeout: float) -> None:
        try:
            self._worker(rank).claim(epoch)
        except FencedError as error:
            raise WorkerFailureError(Failure(FailureReason.FENCED, str(error))) from None

    def load(self, rank: int, modules: Sequence[ExpertModule], timeout: float) -> WorkerInfo:
        worker = self._worker(rank)
        try:
            worker.load(modules)
        except ExpertMeshError as error:
            raise WorkerFailureError(Failure(FailureReason.RAISED, str(error))) from None
        return worker.describe()

    def unload(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> WorkerInfo:
        worker = self._worker(rank)
        worker.unload(keys)
        return worker.describe()

    def canary(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> Mapping[ExpertKey, Array]:
        return self._worker(rank).canary(keys)

    def connect(self, rank: int, timeout: float) -> Link:
        return LocalLink(rank, self._worker(rank))

    def was_oom(self, info: WorkerInfo) -> bool:
        return False

    def fence(self, info: WorkerInfo) -> None:
        """Makes it another one: there is no process that could be killed."""
        self.workers.pop(info.rank, None)

    def end(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self.workers.pop(rank, None)

    def check(self) -> None:
        """There is nothing that could be gone."""

    def num_nodes(self) -> int:
        return 1

    def close(self) -> None:
        self.workers.clear()

    def _worker(self, rank: int) -> ExpertWorker:
        worker = self.workers.get(rank)
        if worker is None:
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: is gone"))
        return worker
