"""Puts together what runs experts on workers. Part of the composition root, with main.py."""

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from uuid import uuid4

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import device_of
from coordinator.server.open_fleet import (
    describe_all,
    open_fleet,
    open_transport,
    wait_for_machines,
    worker_spec,
)
from coordinator.server.phases import UNTOLD, Phases
from coordinator.server.plan_file import PlanFile
from coordinator.server.planned_workers import nodes_of, planned_of, read_planned
from expert_workers.cluster.place import OwnRay
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import OnLoss, PoolOptions
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.routes import HERE, Address
from expert_workers.observers import ExpertObserver, ExpertObservers
from expert_workers.remote_experts import RemoteExperts
from expert_workers.supervision.control_loop import ControlLoop
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.jobs import Connector, Expected, Jobs, Timeouts
from expert_workers.supervision.options import SupervisorOptions
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.transports.base import Site
from expert_workers.transports.fleet import Fleet, Machine
from expert_workers.transports.in_process.transport import InProcessTransport
from expert_workers.worker.expert_worker import ExpertWorker, WorkerSpec
from moe_model.checkpoint.reader import Checkpoint
from moe_model.halt import Halt
from moe_model.kernels.choice import HAS_NATIVE
from moe_model.loading import ModuleProgress
from moe_model.versions.expert_versions import Catalog, ExpertModule

# A worker's heart may beat so seldom, in seconds: Ray's calls are not quick on a network that loses packets.
_LEAST_ANSWER = 5.0


@contextmanager
def open_workers(
    checkpoint: Checkpoint,
    engine: EngineConfig,
    workers: WorkersConfig,
    observers: Sequence[ExpertObserver] = (),
    over: Callable[[str], None] | None = None,
    phases: Phases = UNTOLD,
    halt: Halt | None = None,
    own_ray: OwnRay | None = None,
) -> Iterator[RemoteExperts]:
    """Workers with all their experts; they end with the block, unless they shall stay. `own_ray`: a Ray that
    another process has started for this one. Raises HaltedError."""
    client = f"coordinator {platform.node()}:{os.getpid()} ({uuid4().hex[:8]})"
    spec, halt = worker_spec(checkpoint, engine, workers), halt or Halt()
    plan = read_planned(workers, checkpoint.config)
    with ExitStack() as stack:
        transport = stack.enter_context(open_transport(workers))
        if transport.spans_processes:
            phases("Ray")
        fleet = stack.enter_context(open_fleet(spec, transport, workers, own_ray))
        halt.check()
        there = _what_is_there(fleet, workers, halt, phases, plan)
        catalog = Catalog.of_checkpoint(checkpoint.config).sliced(engine.expert_slices)
        watchers, here = ExpertObservers(observers), InProcessTransport()
        pool_options = _pool_options(engine, workers, there.epoch, plan)
        pool = ExpertPool(catalog, transport, pool_options, None, watchers, here)
        expected = Expected(there.epoch, client, spec.precision, checkpoint.fingerprint, workers.take_over)
        modules, own = list(catalog.modules), replace(spec, rank=HERE, num_threads=engine.num_threads)
        progress = _progress(checkpoint, len(modules), min(workers.replicas, there.num_workers), phases)
        jobs = Jobs(fleet, expected, _timeouts(workers), pool, progress.add)
        options = _supervisor_options(engine, workers, own, plan)
        load = _loader(own, expected, here, pool)
        supervisor = Supervisor(ControlLoop(jobs, modules, pool, options, watchers, load, over))
        pool.set_rescuer(supervisor)
        halt.then(supervisor.halt)

        def end_workers() -> None:
            jobs.halt()
            # Those that were there and never became ours stay as they are.
            ours = [w.rank for w in supervisor.workers() if w.info is not None or w.rank not in there.ranks]
            if not (workers.keep_workers or supervisor.is_fenced):
                fleet.end(ours)

        experts = RemoteExperts(
            pool, supervisor, end_workers, engine.expert_slices, transport.certificate_end
        )
        stack.callback(experts.close)
        phases(f"{there.num_workers} workers with their experts")
        _start(supervisor, there, workers.start_timeout, progress)
        fleet.end(there.ranks - {worker.rank for worker in supervisor.workers()})
        yield experts


@dataclass(frozen=True, slots=True)
class _There:
    """What a start finds: workers of an earlier coordinator, of which the next epoch is this one's, and the
    machines that workers shall follow, None where they follow none. `num_workers` are to begin."""

    ranks: frozenset[int]
    epoch: int
    num_workers: int
    machines: Sequence[Machine] | None = None
    node_ids: Mapping[int, str] = field(default_factory=dict)


def _start(supervisor: Supervisor, there: _There, timeout: float, progress: ModuleProgress) -> None:
    number, machines, node_ids = there.num_workers, there.machines, there.node_ids
    supervisor.start(number, timeout, lambda: progress.num_loaded, machines, node_ids)


def _what_is_there(
    fleet: Fleet, workers: WorkersConfig, halt: Halt, phases: Phases, plan: PlanFile | None
) -> _There:
    ranks = fleet.find()
    if workers.replace_workers:
        fleet.end(ranks)
        ranks = frozenset()
    found = describe_all(fleet, ranks, workers.call_timeout, halt)
    epoch = 1 + max((info.epoch for info in found.values()), default=0)
    if plan is not None and workers.is_on_running_ray:
        return _There(ranks, epoch, workers.num_workers, None, nodes_of(plan, fleet, workers, halt, phases))
    if workers.workers_per_node == 0:
        return _There(ranks, epoch, workers.num_workers)

    def on_number(number: int) -> None:
        phases(f"machines: {number} of {workers.min_machines}")

    machines = wait_for_machines(fleet, workers.min_machines, workers.start_timeout, halt, on_number)
    num_workers = workers.workers_per_node * sum(not machine.is_leaving for machine in machines)
    # Those that follow machines are known by where they are, others by their ranks.
    return _There(ranks, epoch, num_workers, machines, {rank: info.node_id for rank, info in found.items()})


def _progress(checkpoint: Checkpoint, num_modules: int, copies: int, phases: Phases) -> ModuleProgress:
    """Of all workers together: each holder of an expert reads it."""
    return ModuleProgress(copies * checkpoint.experts_bytes, copies * num_modules, phases.progress)


def _timeouts(workers: WorkersConfig) -> Timeouts:
    start, answer = workers.start_timeout, max(_LEAST_ANSWER, workers.call_timeout)
    return Timeouts(start=start, answer=answer, load=start)


def _supervisor_options(
    engine: EngineConfig, workers: WorkersConfig, spec: WorkerSpec, plan: PlanFile | None
) -> SupervisorOptions:
    """`spec`: how this process computes on its CPU, if it does."""
    on_loss = OnLoss(workers.on_expert_loss)
    uses_cpu = on_loss.computes_here or device_of(engine).type == "cpu"
    return SupervisorOptions(
        replicas=workers.replicas,
        redundant=workers.redundant_experts,
        workers_per_node=workers.workers_per_node,
        has_machines=workers.is_on_running_ray,
        on_loss=on_loss,
        rebalance_interval=workers.rebalance_interval,
        health=HealthOptions(canary_interval=workers.canary_interval),
        kernels=spec.kind_of(spec.choose_kernels()) if uses_cpu else None,
        planned=None if plan is None else planned_of(plan),
    )


def _pool_options(
    engine: EngineConfig, workers: WorkersConfig, epoch: int, plan: PlanFile | None
) -> PoolOptions:
    return PoolOptions(
        call_timeout=workers.call_timeout,
        least_timeout=min(1.0, workers.call_timeout),
        wait_timeout=workers.expert_wait_timeout,
        wire_dtype=workers.wire_dtype,
        combine=Combine(workers.combine),
        on_loss=OnLoss(workers.on_expert_loss),
        epoch=epoch,
        num_slices=engine.expert_slices,
        splits_rows=_has_native_kernels(engine, workers),
        first_costs={} if plan is None else {rank: each.cost for rank, each in enumerate(plan.workers)},
        fixed_rows=0.0 if plan is None else plan.fixed_rows,
    )


def _has_native_kernels(engine: EngineConfig, workers: WorkersConfig) -> bool:
    """Whether all workers have, for sure: those of other machines may have been installed without."""
    is_built_here = HAS_NATIVE and not workers.is_on_running_ray
    return engine.kernels == "native" or (engine.kernels == "auto" and is_built_here)


def _loader(
    spec: WorkerSpec, expected: Expected, here: InProcessTransport, links: Connector
) -> Callable[[Sequence[ExpertModule]], Address]:
    """Loads experts into this process, as a last resort."""
    incarnations = count(1)

    def load(modules: Sequence[ExpertModule]) -> Address:
        worker = ExpertWorker(spec)
        worker.claim(expected.client, expected.epoch)
        worker.load(modules)
        served = here.serve(worker, Site())
        address = Address.here(next(incarnations), served.endpoint)
        links.connect(address, 0.0)
        return address

    return load
