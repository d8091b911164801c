"""From a sweep's cell to what is simulated of it: the same server and load, on a probed machine."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from coordinator.commands.serve_arguments import add_arguments
from coordinator.config.serve import ServeConfig
from coordinator.server.open_fleet import threads_of_each
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import OnLoss, PoolOptions
from expertmesh.commands.options import options_of
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.machine import Cores
from scaling.cell import Cell, Host
from scaling.link import Link
from scaling.loads.base import Target
from scaling.machines import Machine, Machines
from scaling.shape import Shape, config_of, shape_of_config
from scaling.simulation.routing import Draws, Even, forced
from scaling.simulation.setting import (
    Ask,
    CoordinatorPlace,
    CostsOf,
    Demand,
    Setting,
    WorkerPlace,
    usual_costs,
)
from scaling.workloads.plan import workload

HEAD = "head"
# Of the control groups of a sweep's hosts (scaling.hosts), which have quotas of such short periods.
HOSTS_PERIOD_S = 0.004
# Of a host's quota, what Ray's own processes there take: measured, 0.05 to 0.06 cores of three nodes.
RAY_CORES = 0.02


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def setting_of(
    cell: Cell,
    machines: Machines,
    base: Path,
    seed: int = 0,
    skew_seed: int = 0,
    costs_of: CostsOf = usual_costs,
) -> Setting:
    """`base`: what the cell's model is relative to; `skew_seed`: of a skew's order of experts. A cell of this
    machine or its namespaces is on the file's first machine; one of a cluster has its coordinator there, and
    a worker on each other. Raises ConfigError."""
    config = config_of(base / cell.model, cell.layers)
    served = serve_config(cell)
    workers, engine = served.workers, served.engine
    is_own_ray = cell.where == "local"
    pool = PoolOptions(
        call_timeout=workers.call_timeout,
        least_timeout=min(1.0, workers.call_timeout),
        wait_timeout=workers.expert_wait_timeout,
        wire_dtype=workers.wire_dtype,
        combine=Combine(workers.combine),
        on_loss=OnLoss(workers.on_expert_loss),
        splits_rows=engine.kernels == "native" or (engine.kernels == "auto" and is_own_ray),
    )
    first = machines.machines[0]
    coordinator = CoordinatorPlace(
        first.name,
        engine.num_threads or max(1, int(first.cores)),
        host=HEAD if cell.where == "namespaces" else "",
    )
    return Setting(
        config,
        machines,
        (coordinator,),
        _worker_places(cell, machines, workers.num_threads),
        engine=engine,
        pool=pool,
        replicas=workers.replicas,
        redundant=workers.redundant_experts,
        cables=_cables(cell) if cell.where == "namespaces" else None,
        period_s=HOSTS_PERIOD_S,
        routing=_routing(cell, shape_of_config(config, cell.model), skew_seed),
        faults=() if cell.fault is None else (cell.fault,),
        is_forced=cell.skew.zipf is not None,
        seed=seed,
        costs_of=costs_of,
        name=Path(cell.model).stem,
    )


def demand_of(cell: Cell, config: ModelConfig, base: Path, seed: int) -> Demand:
    """The very requests that a sweep sends, a trace's path being relative to `base`. Raises ConfigError."""
    target = Target("", "", cell.model, config.vocab_size, config.max_seq_len)
    planned = workload(cell.load.below(base), target, seed).requests
    asks = [Ask(each.due_s, len(each.prompt), each.num_output, each.prompt) for each in planned]
    return Demand(asks, cell.load.concurrency)


def serve_config(cell: Cell) -> ServeConfig:
    """As `expertmesh serve` would read the cell's options. Raises ConfigError."""
    parser = _Parser(prog="serve", add_help=False, allow_abbrev=False)
    add_arguments(parser)
    words = [f"--dtype={cell.dtype}", f"--workers={cell.workers}", f"--replicas={cell.replicas}"]
    words += [f"--wire-dtype={cell.wire_dtype}", f"--combine={cell.combine}"]
    for name, value in cell.serve.items():
        is_switch = isinstance(value, bool)
        words.append((f"--{name}" if value else f"--no-{name}") if is_switch else f"--{name}={value}")
    try:
        config = options_of(parser.parse_args([*words, "MODEL"]), ServeConfig)
    except argparse.ArgumentError as error:
        raise ConfigError(f"serve: {error}") from error
    return replace(config, workers=replace(config.workers, num_workers=cell.workers))


def _worker_places(cell: Cell, machines: Machines, asked: int | None) -> tuple[WorkerPlace, ...]:
    first = machines.machines[0]
    if cell.where == "cluster":
        others = machines.machines[1:] or machines.machines
        where = [others[rank % len(others)] for rank in range(cell.workers)]
        return tuple(WorkerPlace(each.name, asked or max(1, int(each.cores))) for each in where)
    if cell.where == "namespaces":
        hosts = cell.hosts or (Host(),) * cell.workers
        return tuple(_host_place(first, rank, host, asked) for rank, host in enumerate(hosts))
    cores = max(1, int(first.cores))
    each = (
        threads_of_each(cell.workers, Cores(cores, "", is_quota=first.cores != cores)) if cell.workers else 1
    )
    return tuple(WorkerPlace(first.name, asked or each) for _ in range(cell.workers))


def _host_place(machine: Machine, rank: int, host: Host, asked: int | None) -> WorkerPlace:
    """A worker has as many threads as its host has whole cores."""
    cores = machine.cores if host.cores is None else min(host.cores, machine.cores)
    quota = None if host.cores is None or host.cores >= machine.cores else max(host.cores - RAY_CORES, 1e-3)
    return WorkerPlace(machine.name, asked or max(1, int(cores)), quota, host=f"w{rank}")


def _cables(cell: Cell) -> dict[str, Link]:
    """As scaling.hosts lays them: the coordinator's is as wide as the cell's link, and has no delay."""
    hosts = cell.hosts or (Host(),) * cell.workers
    cables = {f"w{rank}": host.link or cell.link for rank, host in enumerate(hosts)}
    return {HEAD: Link(gbit=cell.link.gbit), **cables}


def _routing(cell: Cell, shape: Shape, seed: int) -> Draws:
    """Of a model with random weights, whose own routers' choice nothing tells, every expert alike; and what a
    mask leaves is taken for forced."""
    return Even() if cell.skew.zipf is None else forced(shape, cell.skew.zipf, seed)
