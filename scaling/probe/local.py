"""One machine, measured from a process of its own on it."""

import os
from collections.abc import Callable, Sequence
from statistics import median
from typing import TypeVar

import msgspec
import torch
from msgspec import Struct

from benchmarks.engine import Load
from benchmarks.physics import measure_machine as measure_physics
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.kernels.choice import choose_kernels, kind_of
from moe_model.machine import memory_bytes, usable_cores
from scaling.machines import FittedStep, Machine, Overheads, ProductRate
from scaling.probe import kernels, models, service, steps
from scaling.probe.disk import read_mb_per_s
from scaling.probe.fit import fitted, fitted_steps, with_calls
from scaling.probe.front import simulated_token_s, with_front
from scaling.probe.steps import Measured
from scaling.shape import shape_of_config

Say = Callable[[str], None]
_LARGE_KB = 2048.0
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
        plan = kernels.Plan(
            kernels.ALL_FORMS, plan.rows, plan.linears, plan.experts, plan.one_thread, plan.budget_s
        )
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


class Pass(Struct, frozen=True):
    """What one pass over the machine finds. `call_s`: of a call of experts beside these. `alone`, `remote`:
    steps without workers and with some. `services`: of a whole server of the first model."""

    gbytes_per_s: float
    gflops: float
    rates: tuple[ProductRate, ...]
    call_s: float
    alone: tuple[Measured, ...]
    remote: tuple[Measured, ...]
    services: tuple[service.Service, ...]


def measure_machine(name: str, depth: Depth, say: Say) -> Machine:
    """All of it, by the medians of several passes: a machine that is shared is slower for minutes at a time.
    Raises RuntimeError where a server or workers do not start."""
    load_average = os.getloadavg()[0]
    cores = usable_cores()
    passes = []
    for number in range(depth.num_passes):
        if depth.num_passes > 1:
            say(f"pass {number + 1} of {depth.num_passes}")
        passes.append(_measure(depth, cores.number, say))
    found = merged(passes)
    say("the disk")
    machine = Machine(
        name=name,
        cores=float(cores.number),
        memory_gb=round(memory_bytes() / 1e9, 1),
        gbytes_per_s=max([found.gbytes_per_s, *_from_memory(found.rates)]),
        gflops=max([found.gflops, *(r.gflops for r in found.rates if r.form == "bfloat16")]),
        kernels=kind_of(choose_kernels("auto", "cpu", cores.number), torch.bfloat16, "model").name,
        disk_mb_per_s=read_mb_per_s(num_bytes=depth.disk_bytes),
        rates=found.rates,
        overheads=Overheads(experts_us=1e6 * found.call_s),
        has_gpu=torch.cuda.is_available(),
        load_average=load_average,
    )
    return with_steps(machine, depth, found)


def _measure(depth: Depth, num_threads: int, say: Say) -> Pass:
    say(f"memory and operations of {num_threads} cores")
    physics = measure_physics(torch.bfloat16, num_threads=num_threads)
    rates = kernels.measure_rates(depth.products, num_threads, say)
    call_s = kernels.expert_call_seconds(num_threads, depth.products.budget_s)
    gbytes, gflops = 1e-9 * physics.read_bytes_per_second, 1e-9 * physics.flops_per_second
    return Pass(gbytes, gflops, rates, call_s, *measured_models(depth, say))


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


def merged(passes: Sequence[Pass]) -> Pass:
    """The median of each figure; of memory and operations the best, as they are a bound."""
    return Pass(
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


def _from_memory(rates: Sequence[ProductRate]) -> list[float]:
    """GB/s of what is too large for a core's own cache."""
    return [rate.gbytes_per_s for rate in rates if rate.matrix_kb >= _LARGE_KB]


def with_steps(machine: Machine, depth: Depth, found: Pass) -> Machine:
    """The machine with overheads fitted to steps of models, and how well they explain these. Rates of
    products must be there."""
    shapes = {name: shape_of_config(config, name) for name, config in depth.models}
    (first, first_config), load = depth.models[0], depth.loads[0][1]
    of_first = [each for each in found.alone if each.model == first]
    machine = fitted(machine, shapes, found.alone)
    if found.remote:
        machine = with_calls(machine, shapes[first], of_first, found.remote)
    machine = with_front(machine, first_config, load, short_steps(of_first, depth), found.services)
    fit = fitted_steps(machine, shapes, [*found.alone, *found.remote])
    return msgspec.structs.replace(
        machine, fit=(*fit, *_service_steps(machine, first, first_config, load, found.services))
    )


def short_steps(alone: Sequence[Measured], depth: Depth) -> list[Measured]:
    """Those of the load that the first one has: others of as many sequences have longer prompts."""
    first = depth.loads[0][1]
    phases = [load == first for _, load in depth.loads for _ in ("prefill", "decode")]
    return [each for each, is_short in zip(alone, phases, strict=True) if is_short]


def measured_steps(checkpoint: Checkpoint, name: str, depth: Depth, workers: int) -> list[Measured]:
    with steps.opened(checkpoint, workers) as bench:
        found = [bench.measure(name, batch, load, depth.repeats) for batch, load in depth.loads]
    return [each for pair in found for each in pair]


def _service_steps(
    machine: Machine, model: str, config: ModelConfig, load: Load, services: Sequence[service.Service]
) -> tuple[FittedStep, ...]:
    return tuple(
        FittedStep(
            *(model, "service", each.concurrency, 0, 1e3 * each.token_s),
            1e3 * simulated_token_s(machine, config, load, each.concurrency),
        )
        for each in services
    )
