"""LocalFleet: workers as objects in this process. For one-process pools and for tests."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace

from expert_workers.transports.base import (
    AnyTransport,
    Failure,
    FailureReason,
    Served,
    Site,
    WorkerFailureError,
)
from expert_workers.transports.fleet import URGENT, Machine, Supply
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.errors import ExpertMeshError, FencedError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule


class LocalFleet:
    """A Fleet. `spec` is every worker's, but for its rank; any transport may serve them."""

    def __init__(
        self,
        spec: WorkerSpec,
        transport: AnyTransport,
        make: Callable[[WorkerSpec], ExpertWorker] = ExpertWorker,
    ) -> None:
        self._spec = spec
        self._transport = transport
        self._make = make
        self._served: dict[int, Served[Hashable]] = {}
        self.workers: dict[int, ExpertWorker] = {}

    def find(self) -> frozenset[int]:
        return frozenset(self.workers)

    def start(self, rank: int, node_id: str | None = None) -> None:
        worker = self._make(replace(self._spec, rank=rank))
        self._served[rank] = self._transport.serve(worker, Site())
        self.workers[rank] = worker

    def describe(self, rank: int, timeout: float) -> WorkerInfo:
        return self._worker(rank).describe()

    def beat(self, rank: int, client: str, timeout: float) -> WorkerInfo:
        worker = self._worker(rank)
        try:
            worker.heard(client)
        except FencedError as error:
            raise _fenced(error) from None
        return worker.describe()

    def claim(self, rank: int, client: str, epoch: int, *, by_force: bool, timeout: float) -> None:
        worker, served = self._worker(rank), self._serving(rank)
        try:
            worker.claim(client, epoch, by_force=by_force, is_linked=served.num_links != 0)
        except FencedError as error:
            raise _fenced(error) from None

    def load(
        self, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo:
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

    def endpoint(self, rank: int, timeout: float) -> Hashable:
        return self._serving(rank).endpoint

    def was_oom(self, info: WorkerInfo) -> bool:
        return False

    def fence(self, info: WorkerInfo) -> None:
        """Makes it another one: there is no process that could be killed."""
        self.end([info.rank])

    def end(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            if self.workers.pop(rank, None) is not None:
                self._served.pop(rank).close()

    def check(self) -> None:
        """There is nothing that could be gone."""

    def machines(self) -> tuple[Machine, ...]:
        return (Machine(""),)

    def close(self) -> None:
        """Workers of this process end with their fleet."""
        self.end(list(self.workers))

    def _worker(self, rank: int) -> ExpertWorker:
        worker = self.workers.get(rank)
        if worker is None:
            raise _gone(rank)
        return worker

    def _serving(self, rank: int) -> Served[Hashable]:
        served = self._served.get(rank)
        if served is None:
            raise _gone(rank)
        return served


def _gone(rank: int) -> WorkerFailureError:
    return WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: is gone"))


def _fenced(error: FencedError) -> WorkerFailureError:
    return WorkerFailureError(Failure(FailureReason.FENCED, str(error)))
