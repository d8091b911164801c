"""One machine, measured from a process of its own on it."""

import os
from collections.abc import Callable, Sequence

import msgspec
import torch
from msgspec import Struct

from benchmarks.engine import Load
from benchmarks.physics import measure_machine as measure_physics
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.kernels.choice import choose_kernels, kind_of
from moe_model.machine import memory_bytes, usable_cores
from scaling.machines import FittedStep, Machine, ProductRate
from scaling.probe import kernels, models, service, steps
from scaling.probe.disk import read_mb_per_s
from scaling.probe.fit import fitted, fitted_steps, with_calls
from scaling.probe.front import simulated_token_s, with_front
from scaling.probe.steps import Measured
from scaling.shape import shape_of_config

Say = Callable[[str], None]
_LARGE_KB = 2048.0


class Depth(Struct, frozen=True):
    """How much is measured. `models`: that steps are fitted to, the first one also with `workers` and as a
    whole server; `num_turns`: requests of each caller of it, 0: no server. `arguments`: of `expertmesh probe`
    that ask for it."""

    products: kernels.Plan
    models: tuple[tuple[str, ModelConfig], ...]
    loads: tuple[tuple[int, Load], ...]
    repeats: int
    workers: tuple[int, ...]
    num_turns: int
    disk_bytes: int
    arguments: tuple[str, ...] = ()


def depth(*, quick: bool, all_forms: bool) -> Depth:
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
        arguments=(*(("--quick",) if quick else ()), *(("--all",) if all_forms else ())),
    )


def measure_machine(name: str, depth: Depth, say: Say) -> Machine:
    """All of it. Raises RuntimeError where a server or workers do not start."""
    load_average = os.getloadavg()[0]
    cores = usable_cores()
    say(f"memory and operations of {cores.number} cores")
    physics = measure_physics(torch.bfloat16, num_threads=cores.number)
    rates = kernels.measure_rates(depth.products, cores.number, say)
    native = choose_kernels("auto", "cpu", cores.number)
    machine = Machine(
        name=name,
        cores=float(cores.number),
        memory_gb=round(memory_bytes() / 1e9, 1),
        gbytes_per_s=max([1e-9 * physics.read_bytes_per_second, *_from_memory(rates)]),
        gflops=max([1e-9 * physics.flops_per_second, *(r.gflops for r in rates if r.form == "bfloat16")]),
        kernels=kind_of(native, torch.bfloat16, "model").name,
        rates=rates,
        has_gpu=torch.cuda.is_available(),
        load_average=load_average,
    )
    call_s = kernels.expert_call_seconds(cores.number, depth.products.budget_s)
    machine = msgspec.structs.replace(
        machine, overheads=msgspec.structs.replace(machine.overheads, experts_us=1e6 * call_s)
    )
    say("the disk")
    machine = msgspec.structs.replace(machine, disk_mb_per_s=read_mb_per_s(num_bytes=depth.disk_bytes))
    return with_steps(machine, depth, say)


def _from_memory(rates: Sequence[ProductRate]) -> list[float]:
    """GB/s of what is too large for a core's own cache."""
    return [rate.gbytes_per_s for rate in rates if rate.matrix_kb >= _LARGE_KB]


def with_steps(machine: Machine, depth: Depth, say: Say) -> Machine:
    """The machine with overheads fitted to steps of models, and how well they explain these. Rates of
    products must be there."""
    shapes = {name: shape_of_config(config, name) for name, config in depth.models}
    (first, first_config), load = depth.models[0], depth.loads[0][1]
    alone: list[Measured] = []
    remote: list[Measured] = []
    services: list[service.Service] = []
    short: list[Measured] = []
    for name, config in depth.models:
        with models.made(config) as checkpoint:
            say(f"steps of {name}, {shapes[name].total_params / 1e6:.0f} M weights")
            alone += measured_steps(checkpoint, name, depth, 0)
            if name != first:
                continue
            for workers in depth.workers:
                say(f"steps of {name} with {workers} workers")
                remote += measured_steps(checkpoint, name, depth, workers)
            if depth.num_turns:
                say(f"a whole server of {name}")
                short = short_steps(alone, depth)
                services = service.measure_service(checkpoint, load, short, depth.num_turns)
    machine = fitted(machine, shapes, alone)
    if remote:
        machine = with_calls(machine, shapes[first], [each for each in alone if each.model == first], remote)
    machine = with_front(machine, first_config, load, short, services)
    fit = fitted_steps(machine, shapes, [*alone, *remote])
    return msgspec.structs.replace(
        machine, fit=(*fit, *_service_steps(machine, first, first_config, load, services))
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
