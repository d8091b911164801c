"""One machine as passes over it say: its rates, its overheads, and how well they explain what they are of."""

from collections.abc import Sequence

import msgspec
import torch

from benchmarks.engine import Load
from moe_model.config import ModelConfig
from moe_model.kernels.choice import choose_kernels, kind_of
from moe_model.machine import last_cache_bytes, memory_bytes, usable_cores
from scaling.machines import FittedStep, Machine, Overheads, ProductRate
from scaling.probe import service
from scaling.probe.disk import read_mb_per_s
from scaling.probe.fit import fitted, fitted_steps, with_calls
from scaling.probe.front import simulated_token_s, with_front
from scaling.probe.passes import Depth, Pass, Say, measured_pass, merged, short_steps
from scaling.shape import shape_of_config

_LARGE_KB = 2048.0


def measure_machine(name: str, depth: Depth, say: Say) -> Machine:
    """All of it, by the medians of its passes. Raises RuntimeError where a server or workers do not start."""
    passes = []
    for number in range(depth.num_passes):
        if depth.num_passes > 1:
            say(f"pass {number + 1} of {depth.num_passes}")
        passes.append(measured_pass(depth, say))
    say("the disk")
    return machine_of(name, depth, passes)


def machine_of(name: str, depth: Depth, passes: Sequence[Pass]) -> Machine:
    """This machine, which the passes are of; its disk is read here."""
    found, cores = merged(passes), usable_cores().number
    machine = Machine(
        name=name,
        cores=float(cores),
        memory_gb=round(memory_bytes() / 1e9, 1),
        gbytes_per_s=max([found.gbytes_per_s, *_from_memory(found.rates)]),
        gflops=max([found.gflops, *(r.gflops for r in found.rates if r.form == "bfloat16")]),
        kernels=kind_of(choose_kernels("auto", "cpu", cores), torch.bfloat16, "model").name,
        disk_mb_per_s=read_mb_per_s(num_bytes=depth.disk_bytes),
        rates=found.rates,
        overheads=Overheads(experts_us=1e6 * found.call_s),
        has_gpu=torch.cuda.is_available(),
        load_average=found.load_average,
        cache_mb=1e-6 * last_cache_bytes(),
    )
    return with_steps(machine, depth, found)


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
