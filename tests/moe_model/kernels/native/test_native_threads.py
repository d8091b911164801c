"""Four threads give the bits that one gives, for work that is large enough to be shared out."""

import math
import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

import pytest
import torch

from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.base import Contexts, Linear
from moe_model.kernels.native.native_kernels import NativeKernels
from moe_model.kernels.native.runtime import Scratch
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.layers.attention import AttentionForm
from moe_model.layers.router import RouterWeights
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.layers.specs import NormSpec
from tests.moe_model.kernels.native.test_native_experts import make_bank

pytestmark = needs_native

GATE = RouterWeights(torch.randn(5, 60))
ONE, FOUR = NativeKernels(num_threads=1), NativeKernels(num_threads=4)


@pytest.mark.parametrize("num_rows", [1, 5, 97, 300])
def test_products(num_rows: int) -> None:
    weight_OI, x_RI = torch.randn(700, 300), torch.randn(num_rows, 300)
    assert num_rows * weight_OI.numel() > 200_000, "below, one thread does it all"
    one, four = (
        kernels.linear(weight_OI, None, "gelu", kernels.norm(NormSpec("layer_norm", 1e-5), torch.ones(300)))
        for kernels in (ONE, FOUR)
    )
    for _ in range(20):
        assert torch.equal(one(x_RI), four(x_RI))


def test_experts() -> None:
    x_TD, router = torch.randn(64, 60), TorchKernels().router(SoftmaxOfTopK(), GATE, 2)
    routing = router(x_TD)
    one, four = make_bank(ONE, 60, 200), make_bank(FOUR, 60, 200)
    expected = one.run_tokens(0, x_TD, routing)
    for _ in range(50):
        assert torch.equal(expected, four.run_tokens(0, x_TD, routing))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention(dtype: torch.dtype) -> None:
    num_tokens, heads, d, block = 90, 4, 16, 16
    q_THd, k_THd, v_THd = torch.randn(3, num_tokens, heads, d)
    contexts = Contexts(
        slots_T=torch.arange(block, block + num_tokens),
        sequences_T=torch.zeros(num_tokens, dtype=torch.int32),
        lengths_T=torch.arange(1, num_tokens + 1, dtype=torch.int32),
        block_table_NB=torch.arange(1, 8, dtype=torch.int32)[None],
        longest=num_tokens,
        layout="head_major",
    )
    assert num_tokens * num_tokens * heads * d > 200_000, "below, one thread does it all"

    def run(kernels: NativeKernels) -> torch.Tensor:
        cache = torch.full((2, 8, heads, block, d), float("nan"), dtype=dtype)
        form = AttentionForm(1 / math.sqrt(d))
        return kernels.attend_paged(form, q_THd, (k_THd, v_THd), (cache[0], cache[1]), contexts)

    expected = run(ONE)
    assert expected.isfinite().all()
    for _ in range(50):
        assert torch.equal(expected, run(FOUR))


CORES = sorted(os.sched_getaffinity(0))


@contextmanager
def busy(core: int, num_processes: int) -> Iterator[None]:
    """Other processes share this core."""
    with ExitStack() as stack:
        for _ in range(num_processes):
            process = subprocess.Popen(["sh", "-c", "echo; while :; do :; done"], stdout=subprocess.PIPE)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            os.sched_setaffinity(process.pid, {core})
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
        yield


@contextmanager
def pinned(places: Mapping[int, int]) -> Iterator[None]:
    """Threads by number, each on one core; those that end are left out."""
    with ExitStack() as stack:
        for thread, core in places.items():
            with suppress(ProcessLookupError):
                before = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {core})
                stack.callback(_pin, thread, before)
        yield


def _pin(thread: int, cores: set[int]) -> None:
    with suppress(ProcessLookupError):
        os.sched_setaffinity(thread, cores)


@pytest.mark.skipif(len(CORES) < 2, reason="one core")
def test_a_thread_whose_core_others_have_is_not_waited_for() -> None:
    """The pool's other threads have a fraction of one core, and not when it is needed."""
    weight_OI, x_RI = torch.randn(700, 300), torch.randn(16, 300)
    norm = ONE.norm(NormSpec("layer_norm", 1e-5), torch.ones(300))
    one, four = (kernels.linear(weight_OI, None, "gelu", norm) for kernels in (ONE, FOUR))
    four(x_RI)
    this = threading.get_native_id()
    others = {int(name): CORES[1] for name in os.listdir("/proc/self/task")}
    with busy(CORES[1], num_processes=3), pinned({**others, this: CORES[0]}):
        alone, beside = (seconds_of(product, x_RI) for product in (one, four))
    assert beside < 5 * alone


def seconds_of(product: Linear, x_RI: torch.Tensor) -> float:
    """The median of a hundred."""
    seconds = []
    for _ in range(100):
        started = time.perf_counter()
        product(x_RI)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def test_memory_that_could_not_be_had_is_not_believed_in() -> None:
    scratch = Scratch()
    scratch.address(64)
    with pytest.raises(RuntimeError):
        scratch.address(1 << 60)
    first = scratch.address(1 << 16)
    assert scratch.address(1 << 16) == first
    assert scratch._bytes.nbytes == 1 << 16
