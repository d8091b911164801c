"""What this machine can do at best, measured in the same run as everything that is compared with it."""

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moe_model.config import ModelConfig
from moe_model.families import family_of


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes per second that a core can read, floating point operations per second of a matrix product."""

    num_threads: int
    read_bytes_per_second: float
    flops_per_second: float


def measure_machine(dtype: torch.dtype, repeats: int = 5) -> Machine:
    """Sum of 256 MiB, and a product of 512 x 512 by 512 x 2048; the best of `repeats`."""
    data = torch.ones(64 << 20)
    x, w = torch.ones(512, 512, dtype=dtype), torch.ones(2048, 512, dtype=dtype)
    read_seconds = min(_seconds(lambda: data.sum()) for _ in range(repeats))
    product_seconds = min(_seconds(lambda: F.linear(x, w)) for _ in range(repeats * 4))
    return Machine(
        torch.get_num_threads(), data.nbytes / read_seconds, 2 * 512 * 512 * 2048 / product_seconds
    )


def decode_floor_seconds(config: ModelConfig, dtype: torch.dtype, machine: Machine) -> float:
    """The least time of one token of one sequence: every active weight is read once."""
    active = family_of(config).num_active_params_per_token(config)
    return active * dtype.itemsize / machine.read_bytes_per_second


def _seconds(work: object) -> float:
    assert callable(work)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
