"""What this machine can do at best, measured in the same run as everything that is compared with it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.machine import usable_cores

_WIDTH, _HEIGHT, _ROWS = 512, 2048, 512
# Beyond any cache: 256 MiB of float32.
_NUM_MATRICES = 64


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes per second that the cores can read, floating point operations per second of a matrix product.

    Of what was tried, torch's operations and ours, the best: a limit that no measurement here is above.
    """

    num_threads: int
    read_bytes_per_second: float
    flops_per_second: float


def measure_machine(dtype: torch.dtype, repeats: int = 5, num_threads: int | None = None) -> Machine:
    """Reads 256 MiB, and multiplies 512 x 512 by 512 x 2048, in float32 and in `dtype`.

    `num_threads` None: as many as there are cores.
    """
    num_threads = num_threads or usable_cores().number
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return _measure(dtype, repeats, num_threads)
    finally:
        torch.set_num_threads(before)


def _measure(dtype: torch.dtype, repeats: int, num_threads: int) -> Machine:
    kernels: list[Kernels] = [TorchKernels(), choose_kernels("auto", "cpu", num_threads)]
    read = max(_read_rate(kernels[1], repeats), _sum_rate(repeats))
    flops = max(_product_rate(each, d, repeats) for each in kernels for d in {dtype, torch.float32})
    return Machine(num_threads, read, flops)


def decode_floor_seconds(config: ModelConfig, dtype: torch.dtype, machine: Machine, batch: int = 1) -> float:
    """The least time of one token of each of `batch` sequences: the roofline.

    Every weight that is in use is read once, or every token meets its active weights, whichever is longer.
    """
    active = family_of(config).num_active_params_per_token(config)
    return max(
        bytes_per_step(config, dtype, batch) / machine.read_bytes_per_second,
        2 * active * batch / machine.flops_per_second,
    )


def bytes_per_step(
    config: ModelConfig, dtype: torch.dtype, batch: int = 1, touched: float | None = None
) -> float:
    """Of all weights that a step is to read. `touched` is how many experts of a layer its rows go to; None:
    of E experts, rows that choose K at random touch E (1 - (1 - K/E)^batch)."""
    family = family_of(config)
    active = family.num_active_params_per_token(config)
    per_expert = sum(prod(shape) for shape in family.expert_shapes(config).values())
    if touched is None:
        touched = config.n_experts * (1 - (1 - config.top_k / config.n_experts) ** batch)
    read = active + len(config.moe_layers) * (touched - config.top_k) * per_expert
    return read * dtype.itemsize


def _sum_rate(repeats: int) -> float:
    data = torch.ones(_NUM_MATRICES * _WIDTH * _HEIGHT)
    return data.nbytes / min(_seconds(lambda: data.sum()) for _ in range(repeats))


def _read_rate(kernels: Kernels, repeats: int) -> float:
    """One row times many matrices: what decoding one sequence is."""
    weight = torch.ones(_HEIGHT, _WIDTH)
    linears = [kernels.linear(weight) for _ in range(_NUM_MATRICES)]
    x = torch.ones(1, _WIDTH)

    def run() -> None:
        for linear in linears:
            linear(x)

    return _NUM_MATRICES * weight.nbytes / min(_seconds(run) for _ in range(repeats))


def _product_rate(kernels: Kernels, dtype: torch.dtype, repeats: int) -> float:
    x = torch.ones(_ROWS, _WIDTH).to(kernels.hidden_dtype(dtype))
    linear = kernels.linear(torch.ones(_HEIGHT, _WIDTH).to(dtype))
    seconds = min(_seconds(lambda: linear(x)) for _ in range(4 * repeats))
    return 2 * _ROWS * _WIDTH * _HEIGHT / seconds


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
