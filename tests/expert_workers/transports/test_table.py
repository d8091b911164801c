"""A transport is a folder and a row: what is needed of one, and that nothing else is."""

import subprocess
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import ClassVar

import pytest
import torch

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.open_workers import open_workers
from expert_workers.transports.base import (
    NO_OPTIONS,
    AnyTransport,
    Failure,
    FailureReason,
    Pending,
    Served,
    Site,
    TransportOptions,
    WorkerFailureError,
)
from expert_workers.transports.table import TRANSPORTS, Row, make_transport
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.checkpoint.reader import Checkpoint
from tests.expert_workers.fakes import make_config, make_routing, make_rows, make_worker, placed

CONFIG = make_config()


class QueueCall:
    """A Pending."""

    def __init__(self) -> None:
        self.answers: SimpleQueue[ExpertReply | Failure] = SimpleQueue()
        self.outcome: ExpertReply | Failure | None = None
        self.arrived = 0.0


class QueueServer:
    """A Served: one thread takes calls from a queue."""

    num_links = None

    def __init__(self, number: int, worker: ExpertWorker) -> None:
        self.endpoint = number
        self.calls: SimpleQueue[tuple[ExpertCall, QueueCall] | None] = SimpleQueue()
        self._worker = worker
        self._thread = Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (asked := self.calls.get()) is not None:
            call, pending = asked
            pending.answers.put(self._worker.compute(call))


class QueueLink:
    """A Link."""

    frames = None

    def __init__(self, rank: int, server: QueueServer) -> None:
        self.rank = rank
        self.failure: Failure | None = None
        self._server = server

    def send(self, call: ExpertCall) -> QueueCall:
        pending = QueueCall()
        if self.failure is None:
            self._server.calls.put((call, pending))
        else:
            pending.outcome = self.failure
        return pending

    def look(self) -> None:
        pass

    def fail(self, reason: FailureReason, message: str) -> None:
        self.failure = self.failure or Failure(reason, message)

    def close(self) -> None:
        self.fail(FailureReason.DIED, f"worker {self.rank}: is closed")


class QueuePlane:
    """A Plane."""

    def wait(
        self, pendings: Sequence[Pending], deadline: float, is_enough: Callable[[], bool] | None = None
    ) -> None:
        for pending in pendings:
            assert isinstance(pending, QueueCall)
            pending.outcome = pending.outcome or pending.answers.get(timeout=30)


@dataclass
class QueueTransport:
    """A Transport of a few lines."""

    options: TransportOptions = NO_OPTIONS
    servers: dict[int, QueueServer] = field(default_factory=dict)
    spans_processes: ClassVar[bool] = False
    certificate_end: ClassVar[float | None] = None
    made: ClassVar[list[int]] = []

    def serve(self, worker: ExpertWorker, site: Site) -> QueueServer:
        server = QueueServer(len(self.made), worker)
        self.servers[server.endpoint] = server
        self.made.append(server.endpoint)
        return server

    def connect(self, rank: int, endpoint: int, timeout: float) -> QueueLink:
        return QueueLink(rank, self.servers[endpoint])

    def plane(self) -> QueuePlane:
        return QueuePlane()


@pytest.fixture
def queue_row(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(TRANSPORTS, "queue", Row("by queues", f"{__name__}:QueueTransport"))
    return "queue"


def test_a_new_row_is_all_that_a_new_transport_needs(queue_row: str, tiny_checkpoint: Path) -> None:
    """Workers are served, loaded, claimed, asked and ended through it."""
    checkpoint = Checkpoint.open(tiny_checkpoint)
    config = checkpoint.config
    before = len(QueueTransport.made)
    x_TD, routing = make_rows(9, config), make_routing(9, config.n_experts, config.top_k)
    results = []
    for name in (queue_row, "in-process"):
        workers = WorkersConfig(num_workers=2, replicas=2, transport=name)
        with open_workers(checkpoint, EngineConfig(kernels="torch", num_threads=1), workers) as experts:
            results.append(experts.forward(0, x_TD, routing))
            assert sum(worker.routed_rows for worker in experts.topology()) == 9 * config.top_k
    assert len(QueueTransport.made) == before + 2
    assert torch.equal(*results)


def test_a_row_is_light_until_its_transport_is_made() -> None:
    """The option's choices and help come from it, so nothing heavy may."""
    script = (
        "import sys; from expert_workers.transports.table import TRANSPORTS;"
        "print(sorted({'torch', 'numpy', 'ray', 'moe_model'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_row_makes_a_transport() -> None:
    for name, row in TRANSPORTS.items():
        transport = make_transport(name, NO_OPTIONS)
        assert type(transport).__name__ == row.place.partition(":")[2]
        assert row.help
        for part in ("serve", "connect", "plane"):
            assert callable(getattr(transport, part))
    within = [name for name in TRANSPORTS if not make_transport(name, NO_OPTIONS).spans_processes]
    assert within == ["in-process"], "does another keep its workers in the coordinator's process? add it here"


# The one of Ray's calls needs an actor: tests/integration/test_ray_workers.py.
@pytest.fixture(params=[name for name in TRANSPORTS if name != "ray"])
def transport(request: pytest.FixtureRequest) -> AnyTransport:
    return make_transport(request.param, NO_OPTIONS)


@pytest.fixture
def served(transport: AnyTransport) -> Iterator[Served[Hashable]]:
    server = transport.serve(make_worker(CONFIG, placed(2, 5, 1), 0), Site())
    yield server
    server.close()


def test_a_served_worker_is_reached_at_its_endpoint_by_any_number_of_links(
    transport: AnyTransport, served: Served[Hashable]
) -> None:
    links = [transport.connect(0, served.endpoint, 10.0) for _ in range(2)]
    assert [link.rank for link in links] == [0, 0]
    assert served.endpoint == served.endpoint
    assert served.num_links in (None, 2)
    for link in links:
        link.close()
        assert link.failure is not None


def test_nothing_is_reached_where_nothing_is_served(transport: AnyTransport) -> None:
    server = transport.serve(make_worker(CONFIG, placed(2, 5, 1), 0), Site())
    endpoint = server.endpoint
    server.close()
    with pytest.raises(WorkerFailureError, match=r"^worker 3: ") as raised:
        transport.connect(3, endpoint, 1.0)
    assert raised.value.failure.reason is FailureReason.DIED
