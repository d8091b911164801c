"""Puts together what runs experts on workers. Part of the composition root, with main.py."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import count
from uuid import uuid4

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import dtype_of
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.process import API_KEY_VARIABLE
from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.pool_stats import PoolObserver, PoolObservers
from expert_workers.dispatch.routes import HERE, Address
from expert_workers.remote_experts import RemoteExperts
from expert_workers.supervision.control_loop import ControlLoop
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.jobs import Connect, Expected, Jobs, Timeouts
from expert_workers.supervision.options import SupervisorOptions
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.tls import TlsPaths
from expert_workers.transports.base import AnyTransport, Site, TransportOptions, WorkerFailureError
from expert_workers.transports.fleet import Fleet
from expert_workers.transports.in_process.fleet import LocalFleet
from expert_workers.transports.in_process.transport import InProcessTransport
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet
from expert_workers.transports.table import make_transport
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint.reader import Checkpoint
from moe_model.files.private_files import check_private
from moe_model.halt import Halt
from moe_model.machine import usable_cores
from moe_model.versions.expert_versions import Catalog, ExpertModule

# A worker's heart may beat so seldom, in seconds: Ray's calls are not quick on a network that loses packets.
_LEAST_ANSWER = 5.0


@contextmanager
def open_workers(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    workers: WorkersConfig,
    observers: Sequence[PoolObserver] = (),
    over: Callable[[str], None] | None = None,
    phases: Phases = UNTOLD,
    halt: Halt | None = None,
) -> Iterator[RemoteExperts]:
    """Workers with all their experts; they end with the block, unless they shall stay. Raises HaltedError."""
    owner = f"coordinator {platform.node()}:{os.getpid()} ({uuid4().hex[:8]})"
    spec = _worker_spec(checkpoint, engine, workers)
    halt = halt or Halt()
    transport = make_transport(workers.transport, TransportOptions(data_tls(workers)))
    with ExitStack() as stack:
        if transport.spans_processes:
            phases("Ray")
        fleet = stack.enter_context(_open_fleet(spec, transport, workers))
        halt.check()
        existing = fleet.find()
        if workers.replace_workers:
            fleet.end(existing)
            existing = frozenset()
        epoch = _next_epoch(fleet, existing, workers.call_timeout, halt)
        catalog = Catalog.of_checkpoint(checkpoint.config)
        watchers, here = PoolObservers(observers), InProcessTransport()
        pool = ExpertPool(catalog, transport, _pool_options(workers, epoch), None, watchers, here)
        expected = Expected(epoch, owner, spec.precision, checkpoint.fingerprint, workers.take_over)
        start, answer = workers.start_timeout, max(_LEAST_ANSWER, workers.call_timeout)
        jobs = Jobs(fleet, expected, Timeouts(start=start, answer=answer, load=start), pool.connect)
        modules, options = list(catalog.modules), _supervisor_options(workers)
        own_spec = replace(spec, rank=HERE, num_threads=engine.num_threads)
        load = _loader(own_spec, expected, here, pool.connect)
        supervisor = Supervisor(ControlLoop(jobs, modules, pool, options, watchers, load, over))
        pool.set_rescuer(supervisor)
        halt.then(supervisor.halt)

        def end_workers() -> None:
            jobs.halt()
            # Those that were there and never became ours stay as they are.
            ours = [w.rank for w in supervisor.workers() if w.info is not None or w.rank not in existing]
            if not (workers.keep_workers or supervisor.is_fenced):
                fleet.end(ours)

        experts = RemoteExperts(pool, supervisor, end_workers)
        stack.callback(experts.close)
        phases(f"{workers.num_workers} workers with their experts")
        supervisor.start(workers.num_workers, workers.start_timeout)
        fleet.end(rank for rank in existing if rank >= workers.num_workers)
        yield experts


def _supervisor_options(workers: WorkersConfig) -> SupervisorOptions:
    return SupervisorOptions(
        replicas=workers.replicas,
        redundant=workers.redundant_experts,
        workers_per_node=workers.workers_per_node,
        on_loss=OnLoss(workers.on_expert_loss),
        rebalance_interval=workers.rebalance_interval,
        health=HealthOptions(canary_interval=workers.canary_interval),
    )


def _next_epoch(fleet: Fleet, existing: Iterable[int], timeout: float, halt: Halt) -> int:
    """After that of all workers which are there."""
    return 1 + max((_epoch_of(fleet, rank, timeout, halt) for rank in existing), default=0)


def _epoch_of(fleet: Fleet, rank: int, timeout: float, halt: Halt) -> int:
    halt.check()
    try:
        return fleet.describe(rank, timeout).epoch
    except WorkerFailureError:
        # It does not answer: a process that is stopped, or just being started.
        return 0


def _pool_options(workers: WorkersConfig, epoch: int) -> PoolOptions:
    return PoolOptions(
        call_timeout=workers.call_timeout,
        least_timeout=min(1.0, workers.call_timeout),
        wait_timeout=workers.expert_wait_timeout,
        wire_dtype=workers.wire_dtype,
        combine=Combine(workers.combine),
        on_loss=OnLoss(workers.on_expert_loss),
        epoch=epoch,
    )


def _worker_spec(checkpoint: Checkpoint, engine: EngineConfig, workers: WorkersConfig) -> WorkerSpec:
    num_threads = workers.num_threads
    if num_threads is None and workers.ray_address is None:
        # All on this machine: together no more threads than it has cores.
        num_threads = max(1, usable_cores().number // workers.num_workers)
    return WorkerSpec(
        0,
        str(checkpoint.path.resolve()),
        dtype_of(engine),
        num_threads=num_threads,
        fingerprint=checkpoint.fingerprint,
        kernels=engine.kernels,
        int8=engine.expert_dtype == "int8",
    )


def _loader(
    spec: WorkerSpec, expected: Expected, here: InProcessTransport, connect: Connect
) -> Callable[[Sequence[ExpertModule]], Address]:
    """Loads experts into this process, as a last resort."""
    incarnations = count(1)

    def load(modules: Sequence[ExpertModule]) -> Address:
        worker = ExpertWorker(spec)
        worker.claim(expected.owner, expected.epoch)
        worker.load(modules)
        served = here.serve(worker, Site())
        address = Address.here(next(incarnations), served.endpoint)
        connect(address, 0.0)
        return address

    return load


@contextmanager
def _open_fleet(spec: WorkerSpec, transport: AnyTransport, config: WorkersConfig) -> Iterator[Fleet]:
    """The way to start workers; what was started on the way to it ends with the block."""
    if not transport.spans_processes:
        local = LocalFleet(spec, transport)
        try:
            yield local
        finally:
            local.close()
        return
    address = config.ray_address
    cluster = (
        RayCluster.start_local(hidden=[API_KEY_VARIABLE])
        if address is None
        else RayCluster.connect(address, insecure=config.insecure)
    )
    try:
        # A cluster of our own is on this machine alone, and so is its data plane.
        host = "127.0.0.1" if address is None else None
        fleet = RayFleet(FleetOptions(spec, config.ray_namespace, transport, host))
        try:
            yield fleet
        finally:
            fleet.close()
    finally:
        cluster.close()


def data_tls(config: WorkersConfig) -> TlsPaths | None:
    """Raises ConfigError for a key that others can read."""
    files = config.data_tls
    if files is None:
        return None
    check_private(files.key, "data plane TLS key")
    return TlsPaths(*(str(path.resolve()) for path in (files.cert, files.key, files.ca)))
