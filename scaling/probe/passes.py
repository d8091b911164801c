"""Passes over one machine, from a process of its own on it: what each finds, and the medians of several.

A machine that is shared is slower for minutes at a time: passes that lie apart say more than a long one.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec
import torch
from msgspec import Struct

from benchmarks.engine import Load
from benchmarks.physics import measure_machine as measure_physics
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.machine import usable_cores
from scaling.machines import ProductRate
from scaling.probe import kernels, models, service, steps
from scaling.probe.steps import Measured
from scaling.shape import shape_of_config
from scaling.store import write_whole

Say = Callable[[str], None]
T = TypeVar("T", ProductRate, Measured, service.Service)


class Depth(Struct, frozen=True):
    """How much is measured, and how often all of it (`num_passes`). `models`: that steps are fitted to, the
    first one also with `workers` and as a whole server; `num_turns`: requests of each caller of it, 0: no
    server. `arguments`: of `expertmesh probe` that ask for it."""

    products: kernels.Plan
    models: tuple[tuple[str, ModelConfig], ...]
    loads: tuple[tuple[int, Load], ...]
    repeats: int
    workers: tuple[int, ...]
    num_turns: int
    disk_bytes: int
    num_passes: int = 1
    arguments: tuple[str, ...] = ()


def depth(*, quick: bool, all_forms: bool, num_passes: int = 1) -> Depth:
    plan = kernels.QUICK if quick else kernels.WHOLE
    if all_forms:
        plan = replace(plan, forms=kernels.ALL_FORMS)
    found = tuple(models.CALIBRATION.items())
    return Depth(
        products=plan,
        models=(found[0], found[2]) if quick else found,
        loads=tuple(steps.loads(quick=quick)),
        repeats=2 if quick else 5,
        workers=(2,) if quick else (1, 2),
        num_turns=2 if quick else 6,
        disk_bytes=(64 if quick else 512) << 20,
        num_passes=num_passes,
        arguments=(
            *(("--quick",) if quick else ()),
            *(("--all",) if all_forms else ()),
            f"--passes={num_passes}",
        ),
    )


def depth_between_rounds() -> Depth:
    """Of the passes of a sweep."""
    return depth(quick=False, all_forms=False)


class Pass(Struct, frozen=True):
    """What one pass over the machine finds. `load_average`: before it. `call_s`: of a call of experts beside
    these. `alone`, `remote`: steps without workers and with some. `services`: of a whole server of the first
    model."""

    load_average: float
    gbytes_per_s: float
    gflops: float
    rates: tuple[ProductRate, ...]
    call_s: float
    alone: tuple[Measured, ...]
    remote: tuple[Measured, ...]
    services: tuple[service.Service, ...]


def measured_pass(depth: Depth, say: Say) -> Pass:
    """Takes minutes. Raises RuntimeError where a server or workers do not start."""
    load_average, num_threads = os.getloadavg()[0], usable_cores().number
    say(f"memory and operations of {num_threads} cores")
    physics = measure_physics(torch.bfloat16, num_threads=num_threads)
    rates = kernels.measure_rates(depth.products, num_threads, say)
    call_s = kernels.expert_call_seconds(num_threads, depth.products)
    gbytes, gflops = 1e-9 * physics.read_bytes_per_second, 1e-9 * physics.flops_per_second
    return Pass(load_average, gbytes, gflops, rates, call_s, *measured_models(depth, say))


def measured_models(
    depth: Depth, say: Say
) -> tuple[tuple[Measured, ...], tuple[Measured, ...], tuple[service.Service, ...]]:
    """`alone`, `remote` and `services` of a pass: steps of all models here, and of the first one with workers
    and in a server."""
    first, load = depth.models[0][0], depth.loads[0][1]
    alone: list[Measured] = []
    remote: list[Measured] = []
    services: list[service.Service] = []
    for name, config in depth.models:
        with models.made(config) as checkpoint:
            say(f"steps of {name}, {shape_of_config(config, name).total_params / 1e6:.0f} M weights")
            alone += measured_steps(checkpoint, name, depth, 0)
            if name != first:
                continue
            for workers in depth.workers:
                say(f"steps of {name} with {workers} workers")
                remote += measured_steps(checkpoint, name, depth, workers)
            if depth.num_turns:
                say(f"a whole server of {name}")
                services = service.measure_service(
                    checkpoint, load, short_steps(alone, depth), depth.num_turns
                )
    return tuple(alone), tuple(remote), tuple(services)


def short_steps(alone: Sequence[Measured], depth: Depth) -> list[Measured]:
    """Those of the load that the first one has: others of as many sequences have longer prompts."""
    first = depth.loads[0][1]
    phases = [load == first for _, load in depth.loads for _ in ("prefill", "decode")]
    return [each for each, is_short in zip(alone, phases, strict=True) if is_short]


def measured_steps(checkpoint: Checkpoint, name: str, depth: Depth, workers: int) -> list[Measured]:
    with steps.opened(checkpoint, workers) as bench:
        found = [bench.measure(name, batch, load, depth.repeats) for batch, load in depth.loads]
    return [each for pair in found for each in pair]


def merged(passes: Sequence[Pass]) -> Pass:
    """The median of each figure; of memory and operations the best, as they are a bound; of load the most."""
    return Pass(
        max(each.load_average for each in passes),
        max(each.gbytes_per_s for each in passes),
        max(each.gflops for each in passes),
        tuple(
            _with_medians(each, ("gflops", "gbytes_per_s"))
            for each in zip(*(p.rates for p in passes), strict=True)
        ),
        median(each.call_s for each in passes),
        tuple(_with_medians(each, ("seconds",)) for each in zip(*(p.alone for p in passes), strict=True)),
        tuple(_with_medians(each, ("seconds",)) for each in zip(*(p.remote for p in passes), strict=True)),
        tuple(
            _with_medians(each, ("token_s", "engine_token_s"))
            for each in zip(*(p.services for p in passes), strict=True)
        ),
    )


def _with_medians(alike: Sequence[T], names: Sequence[str]) -> T:
    """What was found several times of one thing, with the medians of these fields."""
    medians = {name: median(getattr(each, name) for each in alike) for name in names}
    return msgspec.structs.replace(alike[0], **medians)


def write_pass(path: Path, found: Pass) -> None:
    write_whole(path, msgspec.msgpack.encode(found))


def read_pass(path: Path) -> Pass:
    """Raises ConfigError for a file that is no pass, OSError."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Pass)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: not a pass of the probe: {error}; delete it") from error
