"""From what a user says of machines, faults and routing to a setting."""

from dataclasses import dataclass
from pathlib import Path

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.open_fleet import threads_of_each
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import OnLoss, PoolOptions
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.machine import Cores
from scaling.cell import Fault
from scaling.link import Link
from scaling.machines import Machine, Machines
from scaling.shape import config_of, shape_of_config
from scaling.simulation.routing import Draws, Even, forced, traced
from scaling.simulation.setting import CoordinatorPlace, Setting, WorkerPlace
from scaling.strict import convert

FAULTS = ("kill", "pause", "slow", "cut")


@dataclass(frozen=True, slots=True)
class Given:
    """`machine`: as all are, where `machines` is None."""

    model: Path
    machines: Machines | None
    machine: Machine
    link: Link
    num_coordinators: int
    engine: EngineConfig
    workers: WorkersConfig
    faults: tuple[Fault, ...] = ()
    trace: str | None = None
    layers: int | None = None
    restart_s: float = 5.0
    seed: int = 0


def setting_of(given: Given) -> Setting:
    """Raises ConfigError."""
    config = config_of(given.model, given.layers)
    num_workers = given.workers.num_workers
    machines = given.machines or _alike(given.machine, given.link, given.num_coordinators + num_workers)
    names = [machine.name for machine in machines.machines]
    if given.num_coordinators > len(names):
        raise ConfigError(
            f"--coordinators: {given.num_coordinators} need as many machines, there are {len(names)}"
        )
    coordinators = tuple(
        CoordinatorPlace(name, given.engine.num_threads or _whole(machines.named(name)))
        for name in names[: given.num_coordinators]
    )
    for fault in given.faults:
        if fault.worker >= num_workers:
            raise ConfigError(f"--fail: there is no worker {fault.worker} among {num_workers}")
    return Setting(
        config,
        machines,
        coordinators,
        _places(machines, given.num_coordinators, num_workers, given.workers.num_threads),
        engine=given.engine,
        pool=pool_options(given.workers),
        replicas=given.workers.replicas,
        redundant=given.workers.redundant_experts,
        routing=routing_of(given.trace, config),
        faults=given.faults,
        restart_s=given.restart_s,
        seed=given.seed,
        name=given.model.stem,
    )


def pool_options(workers: WorkersConfig, *, splits_rows: bool = False) -> PoolOptions:
    """As `expertmesh serve` has them."""
    return PoolOptions(
        call_timeout=workers.call_timeout,
        least_timeout=min(1.0, workers.call_timeout),
        wait_timeout=workers.expert_wait_timeout,
        wire_dtype=workers.wire_dtype,
        combine=Combine(workers.combine),
        on_loss=OnLoss(workers.on_expert_loss),
        splits_rows=splits_rows,
    )


def routing_of(text: str | None, config: ModelConfig) -> Draws:
    """Raises ConfigError."""
    if text is None:
        return Even()
    if not text.startswith("zipf:"):
        return traced(Path(text), config)
    try:
        share, _, order = text.removeprefix("zipf:").partition(":")
        s, seed = float(share), int(order or 0)
    except ValueError:
        raise ConfigError(f"--trace {text!r}: expected zipf:S or zipf:S:SEED, as zipf:1.2") from None
    if not 0 <= s <= 8 or not 0 <= seed < 1 << 31:
        raise ConfigError(f"--trace {text!r}: expected an S in [0, 8] and a SEED of at most 31 bits")
    return forced(shape_of_config(config, "model"), s, seed)


def fault_of(text: str) -> Fault:
    """Of [KIND:]WORKER@SECOND. Raises ConfigError."""
    kind, mark, rest = text.rpartition(":")
    worker, _, at = rest.partition("@")
    try:
        return convert(
            {"kind": kind if mark else "kill", "worker": int(worker), "at_s": float(at)},
            Fault,
            f"--fail {text}",
        )
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"--fail {text!r}: expected WORKER@SECOND, or {'|'.join(FAULTS)}: before it"
        ) from None


def link_of(text: str) -> Link:
    """Of GBIT,MS[,LOSS]. Raises ConfigError."""
    names = ("gbit", "delay_ms", "loss_percent")
    parts = text.split(",")
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if not 2 <= len(values) <= len(names):
        raise ConfigError(f"--link {text!r}: expected GBIT,MS or GBIT,MS,LOSS, as 10,0.05")
    return convert(dict(zip(names, values, strict=False)), Link, f"--link {text}")


def _alike(machine: Machine, link: Link, num: int) -> Machines:
    names = (f"m{number}" for number in range(num))
    return Machines(tuple(_named(machine, name) for name in names), link=link)


def _named(machine: Machine, name: str) -> Machine:
    fields = {each: getattr(machine, each) for each in machine.__struct_fields__}
    return Machine(**(fields | {"name": name}))


def _places(
    machines: Machines, num_coordinators: int, num: int, asked: int | None
) -> tuple[WorkerPlace, ...]:
    """On the machines beyond the coordinators', in turns; where there are none, beside the first one."""
    others = machines.machines[num_coordinators:]
    if not others:
        only = machines.machines[0]
        cores = _whole(only)
        each = threads_of_each(num, Cores(cores, "", is_quota=only.cores != cores)) if num else 1
        return tuple(WorkerPlace(only.name, asked or each) for _ in range(num))
    where = [others[rank % len(others)] for rank in range(num)]
    return tuple(WorkerPlace(machine.name, asked or _whole(machine)) for machine in where)


def _whole(machine: Machine) -> int:
    return max(1, int(machine.cores))
