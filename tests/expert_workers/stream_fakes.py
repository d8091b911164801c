"""Workers with stream servers, all in this process, and a fleet of them: what Ray does, without Ray."""

import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.placement.placement import Placement
from expert_workers.transports.base import Answerer, Failure, FailureReason, Link, Pending, WorkerFailureError
from expert_workers.transports.fleet import URGENT, Machine, Supply
from expert_workers.transports.stream.auth import Endpoint
from expert_workers.transports.stream.connect import open_link
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.transports.stream.serve_loop import ServeLoop, loop_of
from expert_workers.transports.stream.server import StreamLimits, StreamServer
from expert_workers.wire import Array, ExpertCall, ExpertReply, Pong, ReplyForm
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo
from moe_model.config import ModelConfig
from moe_model.errors import ExpertMeshError, FencedError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog, ExpertModule
from tests.expert_workers.fake_links import GivenLinks, routes_over

HOST = "127.0.0.1"
LIMITS = StreamLimits(handshake_timeout=0.3, stall_timeout=5.0, max_handshakes=3, max_connections=6)


class _Stoppable:
    """A Answerer that computes only while its process is not stopped."""

    def __init__(self, worker: Answerer, goes: threading.Event) -> None:
        self._worker = worker
        self._goes = goes

    def compute(self, call: ExpertCall) -> ExpertReply:
        self._goes.wait()
        return self._worker.compute(call)


@dataclass
class FakeProcess:
    """A worker's process as it looks from outside. While it does not go, nothing in it answers."""

    worker: Answerer
    server: StreamServer
    pid: int
    goes: threading.Event
    loop: ServeLoop | None = None
    is_dead: bool = False

    def end(self) -> None:
        self.is_dead = True
        self.goes.set()
        self.server.close()


@dataclass
class FakeMachine:
    """Runs workers, as one machine or as several. `kill` and `stop` are what the world does to them; what was
    killed is started again at once, as by Ray, where `restarts`."""

    make: Callable[[int], Answerer]
    tls: ssl.SSLContext | None = None
    restarts: bool = True
    processes: dict[int, FakeProcess] = field(default_factory=dict)
    # Those that were started and not ended, whether their process runs or not.
    ranks: set[int] = field(default_factory=set)
    num_started: int = 0
    machines: tuple[Machine, ...] = (Machine(""),)
    # By rank, the machine that it was started on.
    node_ids: dict[int, str] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self, rank: int, node_id: str | None = None) -> None:
        with self.lock:
            self.node_ids[rank] = self.machines[0].node_id if node_id is None else node_id
            self.num_started += 1
            self.ranks.add(rank)
            goes = threading.Event()
            goes.set()
            worker = self.make(rank)
            loop = loop_of(worker) if isinstance(worker, ExpertWorker) else None
            server = StreamServer(_Stoppable(worker, goes), HOST, self.tls, LIMITS, loop=loop)
            self.processes[rank] = FakeProcess(worker, server, self.num_started, goes, loop)

    def kill(self, rank: int) -> None:
        with self.lock:
            self.processes.pop(rank).end()
            if self.restarts:
                self.start(rank, self.node_ids[rank])

    def stop(self, rank: int) -> None:
        self.processes[rank].goes.clear()

    def go(self, rank: int) -> None:
        """On from where it was stopped."""
        self.processes[rank].goes.set()

    def worker(self, rank: int) -> ExpertWorker:
        worker = self.processes[rank].worker
        assert isinstance(worker, ExpertWorker)
        return worker

    def loop(self, rank: int) -> ServeLoop:
        """What answers the worker's plain calls."""
        loop = self.processes[rank].loop
        assert loop is not None
        return loop

    def server(self, rank: int) -> StreamServer:
        return self.processes[rank].server

    def pid(self, rank: int) -> int:
        return self.processes[rank].pid

    def node_ids_in_use(self) -> set[str]:
        return {self.node_ids[rank] for rank in self.ranks}

    def end(self, ranks: Iterable[int] | None = None) -> None:
        """For good."""
        with self.lock:
            for rank in list(self.ranks) if ranks is None else ranks:
                self.ranks.discard(rank)
                process = self.processes.pop(rank, None)
                if process is not None:
                    process.end()


class StreamFleet:
    """A Fleet: one coordinator's way to a machine's workers."""

    def __init__(
        self,
        machine: FakeMachine,
        tls: ssl.SSLContext | None = None,
        *,
        use_unix: bool = True,
    ) -> None:
        self.machine = machine
        self._tls = tls
        self._use_unix = use_unix
        self.fenced: list[int] = []

    def find(self) -> frozenset[int]:
        return frozenset(self.machine.ranks)

    def start(self, rank: int, node_id: str | None = None) -> None:
        self.machine.start(rank, node_id)

    def describe(self, rank: int, timeout: float) -> WorkerInfo:
        return self._info(self._process(rank, timeout))

    def beat(self, rank: int, client: str, timeout: float) -> WorkerInfo:
        process = self._process(rank, timeout)
        try:
            _expert_worker(process).heard(client)
        except FencedError as error:
            raise WorkerFailureError(Failure(FailureReason.FENCED, str(error))) from None
        return self._info(process)

    def claim(self, rank: int, client: str, epoch: int, *, by_force: bool, timeout: float) -> None:
        process = self._process(rank, timeout)
        is_linked = process.server.num_links > 0
        try:
            _expert_worker(process).claim(client, epoch, by_force=by_force, is_linked=is_linked)
        except FencedError as error:
            raise WorkerFailureError(Failure(FailureReason.FENCED, str(error))) from None

    def load(
        self, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo:
        process = self._process(rank, timeout)
        try:
            _expert_worker(process).load(modules)
        except ExpertMeshError as error:
            raise WorkerFailureError(Failure(FailureReason.RAISED, str(error))) from None
        return self._info(process)

    def unload(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> WorkerInfo:
        process = self._process(rank, timeout)
        _expert_worker(process).unload(keys)
        return self._info(process)

    def canary(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> Mapping[ExpertKey, Array]:
        return _expert_worker(self._process(rank, timeout)).canary(keys)

    def endpoint(self, rank: int, timeout: float) -> Endpoint:
        return replace(self._process(rank, timeout).server.endpoint, pid=self.machine.pid(rank))

    def open(self, rank: int, timeout: float = 10.0) -> StreamConnection:
        return open_link(rank, self.endpoint(rank, timeout), self._tls, self._use_unix, timeout)

    def was_oom(self, info: WorkerInfo) -> bool:
        return False

    def fence(self, info: WorkerInfo) -> None:
        with self.machine.lock:
            self.fenced.append(info.pid)
            process = self.machine.processes.get(info.rank)
            if process is not None and process.pid == info.pid:
                self.machine.kill(info.rank)

    def end(self, ranks: Iterable[int]) -> None:
        self.machine.end(list(ranks))

    def check(self) -> None:
        pass

    def machines(self) -> tuple[Machine, ...]:
        return self.machine.machines

    def close(self) -> None:
        pass

    def _process(self, rank: int, timeout: float) -> FakeProcess:
        with self.machine.lock:
            process = self.machine.processes.get(rank)
        if process is None:
            raise _failure(FailureReason.DIED, rank, "its process is gone")
        if not process.goes.wait(timeout):
            raise _failure(FailureReason.LATE, rank, "no answer in time")
        if process.is_dead:
            raise _failure(FailureReason.DIED, rank, "its process is gone")
        return process

    def _info(self, process: FakeProcess) -> WorkerInfo:
        info = _expert_worker(process).describe()
        return replace(info, pid=process.pid, node_id=self.machine.node_ids[info.rank])


def _expert_worker(process: FakeProcess) -> ExpertWorker:
    assert isinstance(process.worker, ExpertWorker)
    return process.worker


def _failure(reason: FailureReason, rank: int, message: str) -> WorkerFailureError:
    return WorkerFailureError(Failure(reason, f"worker {rank}: {message}"))


@contextmanager
def running(workers: Mapping[int, Answerer], tls: ssl.SSLContext | None = None) -> Iterator[FakeMachine]:
    """These workers, each in a process that is not started again by itself."""
    machine = FakeMachine(lambda rank: workers[rank], tls, restarts=False)
    try:
        for rank in workers:
            machine.start(rank)
        yield machine
    finally:
        machine.end()


@contextmanager
def streams(
    workers: Mapping[int, Answerer], *, use_unix: bool = True
) -> Iterator[tuple[dict[int, StreamConnection], FakeMachine]]:
    """A stream to each of these workers."""
    with running(workers) as machine:
        fleet = StreamFleet(machine, use_unix=use_unix)
        links = {rank: fleet.open(rank) for rank in workers}
        try:
            yield links, machine
        finally:
            for link in links.values():
                link.close()


def stream_pool(
    placement: Placement,
    links: Mapping[int, Link],
    options: PoolOptions | None = None,
    layers: tuple[int, int] = (2, 5),
) -> ExpertPool:
    """A pool with routes to all of them, for the experts of so many layers."""
    pool = ExpertPool(
        Catalog.of_checkpoint(ModelConfig(n_layers=layers[0], n_experts=layers[1], top_k=1)),
        GivenLinks(StreamPlane()),
        options,
    )
    pool.publish(routes_over(pool, 1, links, placement.holders))
    return pool


def outcomes(
    pendings: Sequence[Pending], deadline: float | None = None
) -> list[ExpertReply | Pong | Failure | None]:
    """Waits for calls of streams; None: there is no answer in time."""
    StreamPlane().wait(pendings, soon() if deadline is None else deadline)
    return [pending.outcome for pending in pendings]


def make_call(call_id: int, num_rows: int = 2, width: int = 4) -> ExpertCall:
    rows = np.full((num_rows, width), call_id, np.float32)
    weights = np.ones(num_rows, np.float32)
    return ExpertCall(call_id, 0, 0, ((0, num_rows),), None, weights, rows, "float32", ReplyForm.SUM)


def soon() -> float:
    return time.monotonic() + 10
