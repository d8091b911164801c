"""Experts on real Ray actors of a cluster that this process is connected to, without a server around them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.supervision.control_loop import ControlLoop
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.jobs import Expected, Jobs, Timeouts
from expert_workers.supervision.options import SupervisorOptions
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.supervision.worker_state import SupervisedWorker
from expert_workers.transports.base import AnyTransport
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet
from expert_workers.transports.ray.transport import RayTransport
from expert_workers.transports.stream.transport import StreamTransport
from expert_workers.worker.expert_worker import WorkerSpec
from moe_model.checkpoint.reader import Checkpoint
from moe_model.versions.expert_versions import Catalog

WAYS = ("unix", "tcp", "ray")
PATIENCE = 60.0


@dataclass(frozen=True)
class Running:
    """A pool, the supervisor of its workers, and the way to their processes."""

    pool: ExpertPool
    supervisor: Supervisor
    fleet: RayFleet

    def worker(self, rank: int) -> SupervisedWorker:
        [member] = [member for member in self.supervisor.workers() if member.rank == rank]
        return member

    def pid(self, rank: int) -> int:
        info = self.worker(rank).info
        assert info is not None
        return info.pid

    def until_back(self, rank: int, pid: int) -> None:
        """Until another process of that worker holds what it shall hold, and the pool knows."""
        num_held = 0

        def is_back() -> bool:
            self.pool.idle()
            member = self.worker(rank)
            return member.is_ready and self.pid(rank) != pid and len(member.held) > num_held

        until(is_back)
        until(lambda: not self.pool.missing_experts())


def until(condition: Callable[[], object], timeout: float = PATIENCE) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@contextmanager
def running(
    checkpoint: Checkpoint,
    num_workers: int,
    replicas: int = 1,
    *,
    way: str = "unix",
    namespace: str = "test",
    client: str = "ours",
    epoch: int = 1,
    by_force: bool = False,
    keep: bool = False,
    call_timeout: float = 10.0,
    start_timeout: float = 90.0,
    on_loss: OnLoss = OnLoss.AUTO,
    over: Callable[[str], None] | None = None,
    num_slices: int = 1,
    splits_rows: bool = False,
) -> Iterator[Running]:
    """Workers that end with the block, unless they are kept."""
    spec = WorkerSpec(
        *(0, str(checkpoint.path)),
        num_threads=1,
        fingerprint=checkpoint.fingerprint,
        num_slices=num_slices,
    )
    transport: AnyTransport = RayTransport() if way == "ray" else StreamTransport(use_unix=way == "unix")
    fleet = RayFleet(FleetOptions(spec, namespace, transport))
    expected = Expected(epoch, client, spec.precision, checkpoint.fingerprint, by_force)
    catalog = Catalog.of_checkpoint(checkpoint.config).sliced(num_slices)
    least = min(1.0, call_timeout)
    options = PoolOptions(
        call_timeout=call_timeout,
        least_timeout=least,
        epoch=epoch,
        on_loss=on_loss,
        num_slices=num_slices,
        splits_rows=splits_rows,
    )
    pool = ExpertPool(catalog, transport, options)
    jobs = Jobs(fleet, expected, Timeouts(start=start_timeout, answer=call_timeout), pool)
    care = SupervisorOptions(replicas=replicas, on_loss=on_loss, health=HealthOptions(beat_interval=0.2))
    supervisor = Supervisor(ControlLoop(jobs, list(catalog.modules), pool, care, over=over))
    pool.set_rescuer(supervisor)
    try:
        supervisor.start(num_workers, start_timeout)
        pool.idle()
        yield Running(pool, supervisor, fleet)
    finally:
        supervisor.close()
        pool.close()
        if not keep:
            fleet.end(range(num_workers))
        fleet.close()
