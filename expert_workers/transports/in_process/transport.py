"""InProcessTransport: workers that are objects in the client's process."""

from collections.abc import Callable
from itertools import count
from weakref import WeakValueDictionary

from expert_workers.transports.base import Failure, FailureReason, Site, TransportOptions, WorkerFailureError
from expert_workers.transports.in_process.links import LocalLink, LocalPlane
from expert_workers.worker.expert_worker import ExpertWorker


class ServedHere:
    """A Served: `endpoint` is a number that means something in this process only."""

    num_links = None

    def __init__(self, endpoint: int, close: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.close = close


class InProcessTransport:
    """A Transport. A served worker lives as long as its fleet, or a link to it, has it."""

    spans_processes = False

    def __init__(self, options: TransportOptions | None = None) -> None:
        """There is nothing to be told."""
        self._numbers = count(1)
        self._workers: WeakValueDictionary[int, ExpertWorker] = WeakValueDictionary()

    def serve(self, worker: ExpertWorker, site: Site) -> ServedHere:
        number = next(self._numbers)
        self._workers[number] = worker

        def close() -> None:
            self._workers.pop(number, None)

        return ServedHere(number, close)

    def connect(self, rank: int, endpoint: int, timeout: float) -> LocalLink:
        worker = self._workers.get(endpoint)
        if worker is None:
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: is gone"))
        return LocalLink(rank, worker)

    def plane(self) -> LocalPlane:
        return LocalPlane()
