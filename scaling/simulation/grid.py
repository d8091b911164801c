"""Many settings at once: models x workers x links x batches, a row of a CSV for each."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, structs

from coordinator.config.engine import EngineConfig
from expert_workers.dispatch.combine import Combine
from expert_workers.dispatch.options import PoolOptions
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.names import DtypeName, WeightForm
from scaling.link import Link
from scaling.machines import Machine, Machines
from scaling.ranges import Above, Amount, Name, Positive
from scaling.shape import config_of
from scaling.simulation.memory import Fit, fit, swap_seconds
from scaling.simulation.setting import CoordinatorPlace, Setting, WorkerPlace
from scaling.simulation.steady import Steady, steady
from scaling.simulation.workers import Holders, first_holders

MOST_POINTS = 10_000


class GridModel(Struct, frozen=True, forbid_unknown_fields=True):
    """`model`: relative to the grid's file. `experts`: the form of experts' weights, as --expert-dtype."""

    model: Name
    experts: WeightForm = "model"


class Grid(Struct, frozen=True, forbid_unknown_fields=True):
    """`machine`: the coordinator's and each worker's alike; a link: one of `gbit` with one of `delay_ms`."""

    name: Name
    models: Annotated[tuple[GridModel, ...], Meta(min_length=1, max_length=100)]
    machine: Machine
    workers: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    gbit: Annotated[tuple[Above, ...], Meta(min_length=1)]
    delay_ms: Annotated[tuple[Amount, ...], Meta(min_length=1)]
    batch: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    context: Positive = 1024
    dtype: DtypeName = "bfloat16"
    combine: Literal["exact", "sum"] = "exact"
    note: str = ""

    @property
    def num_points(self) -> int:
        axes = (self.models, self.workers, self.gbit, self.delay_ms, self.batch)
        number = 1
        for axis in axes:
            number *= len(axis)
        return number


class Row(Struct, frozen=True):
    """A point. `lacks`: what memory is too small for; then there is no rate. `one_machine`: what it is
    compared with: one machine that `holds` the whole model, or one that `swaps`. `times`: how many times as
    quick as that machine."""

    model: str
    workers: int
    gbit: float
    delay_ms: float
    batch: int
    lacks: str
    coordinator_gb: float
    worker_gb: float
    cache_gb: float
    tokens_per_s: float
    step_ms: float
    error: float
    micro_batches: int
    binds: str
    shared: float
    experts: float
    link: float
    delay: float
    calls: float
    one_machine: str
    one_machine_tokens_per_s: float
    times: float


class Pays(Struct, frozen=True):
    """Of one model on so many workers over one link: the smallest batch of the grid from which on each larger
    one is quicker than one machine; None: not even the largest is."""

    model: str
    workers: int
    gbit: float
    delay_ms: float
    from_batch: int | None
    best_times: float
    binds: str


def rows(grid: Grid, base: Path) -> Iterator[Row]:
    """Raises ConfigError."""
    if grid.num_points > MOST_POINTS:
        raise ConfigError(f"{grid.name}: {grid.num_points} points, more than {MOST_POINTS}")
    for model in grid.models:
        config = config_of(base / model.model)
        alone = _setting(grid, model, config, 0, 1.0, 0.0)
        one = {batch: _one_machine(alone, batch, grid.context) for batch in grid.batch}
        for num_workers in grid.workers:
            holders = first_holders(_setting(grid, model, config, num_workers, 1.0, 0.0), alone.shape)
            for gbit, delay_ms, batch in product(grid.gbit, grid.delay_ms, grid.batch):
                setting = replace(
                    _setting(grid, model, config, num_workers, gbit, delay_ms), holders=dict(holders)
                )
                yield _row(setting, holders, gbit, delay_ms, batch, grid.context, one[batch])


def pays(found: list[Row]) -> list[Pays]:
    """In the order of the rows."""
    groups: dict[tuple[str, int, float, float], list[Row]] = {}
    for row in found:
        groups.setdefault((row.model, row.workers, row.gbit, row.delay_ms), []).append(row)
    said = []
    for key, group in groups.items():
        batches = sorted(group, key=lambda row: row.batch)
        from_batch = None
        for row in reversed(batches):
            if row.times <= 1:
                break
            from_batch = row.batch
        best = max(batches, key=lambda row: row.times)
        said.append(Pays(*key, from_batch, best.times, best.binds))
    return said


def write_csv(path: Path, found: list[Row]) -> None:
    """Raises ConfigError where it cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(Row.__struct_fields__)
            writer.writerows([_cell(value) for value in structs.astuple(row)] for row in found)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def _cell(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


def _setting(
    grid: Grid, model: GridModel, config: ModelConfig, num_workers: int, gbit: float, delay_ms: float
) -> Setting:
    names = [f"m{number}" for number in range(num_workers + 1)]
    machines = Machines(
        tuple(structs.replace(grid.machine, name=name) for name in names),
        link=Link(gbit=gbit, delay_ms=delay_ms),
    )
    threads = grid.machine.cores
    return Setting(
        config,
        machines,
        (CoordinatorPlace("m0", threads),),
        tuple(WorkerPlace(name, threads) for name in names[1:]),
        engine=EngineConfig(dtype=grid.dtype, expert_dtype=model.experts),
        pool=PoolOptions(combine=Combine(grid.combine)),
        name=Path(model.model).stem,
    )


def _one_machine(alone: Setting, batch: int, context: int) -> tuple[str, float]:
    """What one machine gives, and how: it holds the model, or reads what it lacks from its disk."""
    shape, num_tokens = alone.shape, batch * context
    machine = alone.machines.machines[0]
    # Its memory as such is not what its steps are simulated with: what it lacks is added.
    large = structs.replace(machine, memory_gb=1e9)
    found = steady(replace(alone, machines=Machines((large,))), batch, context)
    extra = swap_seconds(alone, shape, batch, num_tokens)
    seconds = found.step_ms / 1e3 + extra
    return ("holds" if extra == 0 else "swaps"), found.batch / seconds


def _row(
    setting: Setting,
    holders: Holders,
    gbit: float,
    delay_ms: float,
    batch: int,
    context: int,
    one: tuple[str, float],
) -> Row:
    shape = setting.shape
    memory: Fit = fit(setting, shape, holders, batch * context)
    found: Steady | None = None if memory.lacks else steady(_with_cache(setting), batch, context)
    shares = found.shares if found is not None else {}
    rate = 0.0 if found is None else found.tokens_per_s
    return Row(
        model=setting.name,
        workers=len(setting.workers),
        gbit=gbit,
        delay_ms=delay_ms,
        batch=batch,
        lacks=memory.lacks,
        coordinator_gb=memory.coordinator_gb,
        worker_gb=memory.worker_gb,
        cache_gb=memory.cache_gb,
        tokens_per_s=rate,
        step_ms=0.0 if found is None else found.step_ms,
        error=0.0 if found is None else found.error,
        micro_batches=1 if found is None else found.micro_batches,
        binds="memory" if found is None else found.binds,
        shared=_sum(shares, "shared", "head", "step"),
        experts=_sum(shares, "experts", "queue"),
        link=_sum(shares, "link"),
        delay=_sum(shares, "delay"),
        calls=_sum(shares, "calls", "combine"),
        one_machine=one[0],
        one_machine_tokens_per_s=one[1],
        times=rate / one[1] if one[1] else float("inf") if rate else 0.0,
    )


def _with_cache(setting: Setting) -> Setting:
    """That the cache has room has been looked at."""
    return replace(setting, engine=replace(setting.engine, kv_cache_bytes=1 << 50))


def _sum(shares: dict[str, float], *names: str) -> float:
    return sum(shares.get(name, 0.0) for name in names)
