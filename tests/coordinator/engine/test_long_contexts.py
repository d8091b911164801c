"""A prompt of 32,768 tokens takes the memory of its cache and a constant, whatever its layers keep."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.cache_sizes import cache_bytes
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.step import Step
from coordinator.engine.core.step_result import StepResult
from moe_model.families import REGISTRY, family_of
from moe_model.kernels.choice import KernelChoice, choose_kernels
from tests.cache_sizes import sizes_of
from tests.models import build_model, drain, make_request, random_weights
from tests.native import KERNELS
from tests.windowed_family import NAME, windowed

LENGTH = 32768
BLOCK_SIZE, STEP = 16, 512
# What the kernels work with at once; torch's attention reads the cache in pieces of 256 MiB.
MOST_BYTES: dict[str, int] = {"native": 16 << 20, "torch": 600 << 20}


class Measured(NamedTuple):
    """Bytes that the prompt has taken at most, those of the whole cache, and the most blocks of it that the
    sequence had in each group."""

    taken: int
    cache: int
    most: list[int]


class Watched(ModelRunner):
    """Notes how many blocks the first sequence of each step has."""

    most: list[int] | None = None

    def run(self, step: Step) -> StepResult:
        held = [len(table.held) for table in step.chunks[0].sequence.tables]
        self.most = list(map(max, self.most or held, held))
        return super().run(step)


@pytest.mark.long
@pytest.mark.parametrize("windows", [(0,), (128, 0), (128, 128)], ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_long_prompt_takes_bounded_memory(kernels: KernelChoice, windows: tuple[int, ...]) -> None:
    """In a process of its own, which has no memory left over from other tests."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes:
        found = processes.submit(measured, kernels, windows).result()
    assert found.taken <= found.cache + MOST_BYTES[kernels]
    for most, window in zip(found.most, sorted(set(windows)), strict=True):
        tokens = window + STEP if window else LENGTH + 4
        assert most <= tokens // BLOCK_SIZE + 2


def measured(kernels: KernelChoice, windows: tuple[int, ...]) -> Measured:
    REGISTRY[NAME] = "tests.windowed_family"
    made = choose_kernels(kernels, "cpu")
    config = replace(windowed(*windows, max_seq_len=262144), n_heads=2, n_kv_heads=1, head_dim=8)
    sizes = sizes_of(config, LENGTH // BLOCK_SIZE + 8, BLOCK_SIZE, 4, STEP)
    spec = family_of(config).cache_spec(config)
    cache = KVCache(spec, sizes, layout=made.cache_layout)
    runner = Watched(build_model(config, random_weights(config), made), cache, attention_plan(made))
    engine = Engine(Scheduler(sizes, 4, STEP), runner, config.max_seq_len)
    engine.submit(make_request("warm", (1,) * STEP, 2))
    drain(engine)
    prompt = torch.randint(0, 50, (LENGTH,), generator=torch.Generator().manual_seed(1)).tolist()
    before = reset_peak()
    engine.submit(make_request("long", tuple(prompt), 4))
    drain(engine)
    assert runner.most is not None
    return Measured(peak_bytes() - before, cache_bytes(spec, sizes, torch.float32), runner.most)


def reset_peak() -> int:
    """The memory of this process now, from which its peak counts again; bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
    return peak
