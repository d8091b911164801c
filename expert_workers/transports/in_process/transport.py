"""InProcessTransport: workers that are objects in the client's process."""

from itertools import count
from weakref import WeakValueDictionary

from expert_workers.transports.base import Failure, FailureReason, Site, TransportOptions, WorkerFailureError
from expert_workers.transports.in_process.links import LocalLink, LocalPlane
from expert_workers.worker.expert_worker import ExpertWorker


class ServedHere:
    """A Served. `endpoint` is a number that means something in this process only."""

    num_links = None

    def __init__(
        self, endpoint: int, worker: ExpertWorker, served: WeakValueDictionary[int, ExpertWorker]
    ) -> None:
        self.endpoint = endpoint
        self._worker = worker
        self._served = served
        served[endpoint] = worker

    def close(self) -> None:
        self._served.pop(self.endpoint, None)


class InProcessTransport:
    """A Transport. A worker lives as long as its Served does, or a link to it."""

    spans_processes = False
    certificate_end: float | None = None

    def __init__(self, options: TransportOptions | None = None) -> None:
        """There is nothing to be told."""
        self._numbers = count(1)
        self._workers: WeakValueDictionary[int, ExpertWorker] = WeakValueDictionary()

    def serve(self, worker: ExpertWorker, site: Site) -> ServedHere:
        return ServedHere(next(self._numbers), worker, self._workers)

    def connect(self, rank: int, endpoint: int, timeout: float) -> LocalLink:
        worker = self._workers.get(endpoint)
        if worker is None:
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: is gone"))
        return LocalLink(rank, worker)

    def plane(self) -> LocalPlane:
        return LocalPlane()
