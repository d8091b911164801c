"""A supervisor and a pool over workers in this process, with short times, and what the world does to them."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.pool_stats import DispatchRecord
from expert_workers.dispatch.routes import HERE, Address
from expert_workers.supervision.control_loop import ControlLoop
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.jobs import Expected, Jobs, Timeouts
from expert_workers.supervision.options import SupervisorOptions
from expert_workers.supervision.restart_policy import RestartOptions
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.supervision.worker_state import Keys, SupervisedWorker
from expert_workers.transports.base import AnyTransport, Failure, FailureReason, Site, WorkerFailureError
from expert_workers.transports.fleet import URGENT, Fleet, Machine, Supply
from expert_workers.transports.in_process.fleet import LocalFleet
from expert_workers.transports.in_process.transport import InProcessTransport
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.wire import Array
from expert_workers.worker.claims import OneClient
from expert_workers.worker.expert_worker import ExpertWorker, WorkerInfo, WorkerSpec
from moe_model.errors import ClusterError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog, ExpertModule
from tests.expert_workers.fakes import (
    TORCH,
    FakeSource,
    make_config,
    make_expert,
    make_experts,
    make_routing,
    make_rows,
    make_spec,
)
from tests.expert_workers.stream_fakes import FakeMachine, StreamFleet
from tests.models import local_experts

CONFIG = make_config()
CATALOG = Catalog.of_checkpoint(CONFIG)
ALL: Keys = frozenset(CATALOG.keys)
X_TD = make_rows(9, CONFIG)
ROUTING = make_routing(9, CONFIG.n_experts, 2)
TIMEOUTS = Timeouts(start=10.0, answer=1.0, load=10.0)
RESTARTS = RestartOptions(moment=0.02, first_wait=0.05, longest_wait=60.0, healthy_after=60.0, max_failures=3)
QUIET = HealthOptions(beat_interval=0.0, canary_interval=0.0)
# Nobody is given up for lost before a test is over, but when it asks for that.
OPTIONS = SupervisorOptions(
    # Steps are short here.
    drop_after=0.05,
    tick=0.02,
    restore_after=600.0,
    rebalance_interval=0.0,
    health=QUIET,
    restarts=RESTARTS,
    on_loss=OnLoss.WAIT,
)


class Notes:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[tuple[int, FailureReason]] = []
        self.restarts: list[tuple[int, FailureReason]] = []
        self.moves: list[int] = []

    def dispatched(self, records: Sequence[DispatchRecord]) -> None:
        pass

    def lost(self, rank: int, reason: FailureReason) -> None:
        self.losses.append((rank, reason))

    def restarted(self, rank: int, reason: FailureReason) -> None:
        self.restarts.append((rank, reason))

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        self.moves.append(num_moved)


class ToldFleet(StreamFleet):
    """Its workers of some ranks die while they load; those of some processes compute something else; what
    starts them may be gone, or leave a question unanswered until it `answers`."""

    def __init__(self, machine: FakeMachine) -> None:
        super().__init__(machine)
        self.crashing: set[int] = set()
        self.is_gone = False
        self.num_looks, self.num_counts = 0, 0
        self.answers = threading.Event()
        self.answers.set()
        self.odd_pids: set[int] = set()

    def load(
        self, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo:
        if rank in self.crashing:
            self.machine.kill(rank)
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: its process is gone"))
        return super().load(rank, modules, timeout, supply)

    def check(self) -> None:
        self.num_looks += 1
        if self.is_gone:
            raise ClusterError("the head is gone")

    def machines(self) -> tuple[Machine, ...]:
        self.num_counts += 1
        assert self.answers.wait(60)
        return super().machines()

    def canary(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> Mapping[ExpertKey, Array]:
        said = super().canary(rank, keys, timeout)
        is_odd = self.machine.pid(rank) in self.odd_pids
        return {key: -vector for key, vector in said.items()} if is_odd else said


@dataclass
class World:
    """Where workers run. `broken` are modules that none of them can read."""

    broken: set[ExpertKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.machine = FakeMachine(lambda rank: self.make_worker(make_spec(rank)))

    def make_worker(self, spec: WorkerSpec) -> ExpertWorker:
        source = FakeSource(CONFIG, torch.float32, TORCH)
        source.broken = self.broken
        # A coordinator of these tests says nothing of itself unless its heart is to beat.
        return ExpertWorker(spec, source, OneClient(lease_seconds=600.0))


class Coordinator:
    """One of a world's, with its own supervisor and pool, both used by the test's thread."""

    def __init__(
        self,
        world: World,
        options: SupervisorOptions = OPTIONS,
        *,
        is_local: bool = False,
        epoch: int = 1,
        by_force: bool = False,
    ) -> None:
        client = f"coordinator {epoch}"
        self.fleet: Fleet
        self.told = ToldFleet(world.machine)
        self._here = InProcessTransport()
        self._incarnations = count(1)
        self.transport: AnyTransport = self._here if is_local else StreamTransport()
        self.fleet = LocalFleet(make_spec(0), self.transport, world.make_worker) if is_local else self.told
        self.notes = Notes()
        self.over: list[str] = []
        self.num_loaded_here = 0
        self._world = world
        self._client, self._epoch = client, epoch
        self._has_machines = options.has_machines or options.workers_per_node > 0
        pool_options = PoolOptions(
            call_timeout=1.0,
            least_timeout=1.0,
            rescue_patience=20.0,
            hedge_floor=10.0,
            on_loss=options.on_loss,
            epoch=epoch,
        )
        self.pool = ExpertPool(CATALOG, self.transport, pool_options, here=self._here)
        expected = Expected(epoch, client, "float32", "sums", by_force)
        self.supervisor = Supervisor(
            ControlLoop(
                Jobs(self.fleet, expected, TIMEOUTS, self.pool),
                list(CATALOG.modules),
                self.pool,
                options,
                self.notes,
                self._load_here,
                self.over.append,
            )
        )
        self.pool.set_rescuer(self.supervisor)

    def _load_here(self, modules: Sequence[ExpertModule]) -> Address:
        self.num_loaded_here += 1
        worker = self._world.make_worker(make_spec(HERE))
        worker.load(modules)
        worker.claim(self._client, self._epoch)
        served = self._here.serve(worker, Site())
        address = Address.here(next(self._incarnations), served.endpoint)
        self.pool.connect(address, 0.0)
        return address

    def start(self, num_workers: int) -> None:
        machines = self.fleet.machines() if self._has_machines else None
        self.supervisor.start(num_workers, 30.0, machines=machines)
        self.pool.idle()

    def until(self, is_so: Callable[[], bool], work: Callable[[], None] | None = None) -> None:
        """Goes on as an engine that has nothing to do, or as one that does `work`."""
        deadline = time.monotonic() + 30
        while not is_so():
            assert time.monotonic() < deadline, "it did not come to pass"
            self.pool.idle()
            if work is None:
                self.pool.await_news(0.02)
            else:
                work()

    def workers(self) -> dict[int, SupervisedWorker]:
        return {worker.rank: worker for worker in self.supervisor.workers()}

    def held(self) -> dict[int, Keys]:
        """By those that are ready."""
        return {rank: worker.held for rank, worker in self.workers().items() if worker.is_ready}

    def num_holders(self, *ranks: int) -> set[int]:
        """Of each module, among these workers."""
        held = self.held()
        return {sum(key in held.get(rank, ()) for rank in ranks) for key in ALL}

    def check_equal(self, *modules: ExpertModule) -> None:
        """With these in the place of the experts whose versions they are."""
        experts = make_experts(CONFIG)
        for module in modules:
            experts[module.layer, module.expert] = make_expert(CONFIG, module.key)
        local = local_experts(CONFIG, experts)
        for layer in range(CONFIG.n_layers):
            y_TD = self.pool.forward(layer, X_TD, ROUTING)
            assert torch.equal(y_TD, local.forward(layer, X_TD, ROUTING))

    def close(self) -> None:
        self.supervisor.close()
        self.pool.close()


@contextmanager
def supervised(
    num_workers: int,
    *,
    is_local: bool = False,
    options: SupervisorOptions = OPTIONS,
    replicas: int = 1,
    machines: str = "",
) -> Iterator[tuple[Coordinator, World]]:
    """One that has been started. `machines`: a letter for each."""
    world = World()
    world.machine.machines = tuple(map(Machine, machines or [""]))
    coordinator = Coordinator(world, replace(options, replicas=replicas), is_local=is_local)
    try:
        coordinator.start(num_workers)
        yield coordinator, world
    finally:
        coordinator.close()
        world.machine.end()
