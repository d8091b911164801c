"""Stream servers over workers in this process, and a control that finds them without Ray."""

import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from expert_workers.in_process import LocalWorker
from expert_workers.stream_auth import Endpoint
from expert_workers.stream_server import StreamLimits, StreamServer
from expert_workers.stream_transport import StreamTransport
from expert_workers.transport import Failure, FailureReason, Pending
from expert_workers.wire import ExpertCall, ReplyForm
from expert_workers.worker import ExpertWorker, WorkerInfo
from tests.expert_workers.fakes import FakePending

T = TypeVar("T")
HOST = "127.0.0.1"
LIMITS = StreamLimits(handshake_timeout=0.3, stall_timeout=5.0, max_handshakes=3, max_connections=6)


@dataclass
class Process:
    """A worker's process as it looks from outside: it has a pid, it may die and be started again."""

    worker: LocalWorker
    server: StreamServer
    pid: int


class FakeControl:
    """A Control over servers of this process; `kill` and `start` do what Ray and the world do."""

    def __init__(self, workers: Mapping[int, LocalWorker], tls: ssl.SSLContext | None = None) -> None:
        self._workers = dict(workers)
        self._tls = tls
        self._processes: dict[int, Process] = {}
        self.num_started = 0
        self.endpoints: dict[int, Endpoint] = {}
        for rank in workers:
            self.start(rank)

    @property
    def ranks(self) -> Sequence[int]:
        return tuple(sorted(self._workers))

    def start(self, rank: int) -> None:
        self.num_started += 1
        worker = self._workers[rank]
        loop = worker.loop if isinstance(worker, ExpertWorker) else None
        server = StreamServer(worker, HOST, self._tls, LIMITS, loop=loop)
        self._processes[rank] = Process(self._workers[rank], server, self.num_started)

    def kill(self, rank: int) -> None:
        self._processes.pop(rank).server.close()

    def server(self, rank: int) -> StreamServer:
        return self._processes[rank].server

    def describe(self, rank: int) -> Pending[WorkerInfo]:
        process = self._processes.get(rank)
        if process is None:
            return FakePending(rank, Failure(FailureReason.DIED, f"worker {rank}: its process is gone"))
        info = process.worker.describe()
        return FakePending(rank, WorkerInfo(**{**_fields(info), "pid": process.pid}))

    def endpoint(self, rank: int) -> Pending[Endpoint]:
        process = self._processes.get(rank)
        if process is None:
            return FakePending(rank, Failure(FailureReason.DIED, f"worker {rank}: its process is gone"))
        endpoint = self.endpoints.get(rank) or process.server.endpoint
        return FakePending(rank, Endpoint(**{**_fields(endpoint), "pid": process.pid}))

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]:
        return [cast("FakePending", pending).outcome for pending in pendings]

    def close(self) -> None:
        pass

    def end(self) -> None:
        for rank in list(self._processes):
            self.kill(rank)


@contextmanager
def streams(
    workers: Mapping[int, LocalWorker], *, use_unix: bool = True
) -> Iterator[tuple[StreamTransport, FakeControl]]:
    """A transport that is not connected yet; describe connects it."""
    control = FakeControl(workers)
    transport = StreamTransport(control, use_unix=use_unix)
    try:
        yield transport, control
    finally:
        transport.close()
        control.end()


def introduce_all(transport: StreamTransport, timeout: float = 10.0) -> list[WorkerInfo | Failure]:
    pendings = [transport.describe(rank) for rank in transport.ranks]
    return transport.gather(pendings, time.monotonic() + timeout)


def make_call(call_id: int, num_rows: int = 2, width: int = 4) -> ExpertCall:
    rows = np.full((num_rows, width), call_id, np.float32)
    weights = np.ones(num_rows, np.float32)
    return ExpertCall(call_id, 0, 0, ((0, num_rows),), None, weights, rows, "float32", ReplyForm.SUM)


def soon() -> float:
    return time.monotonic() + 10


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}
