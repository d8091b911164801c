"""What is said of workers whose kernels give other bits: one line for each kind, once."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import pytest

from expert_workers.dispatch.routes import HERE, Address
from expert_workers.supervision.mixed_kernels import MixedKernels, differences
from expert_workers.supervision.worker_state import SupervisedWorker
from moe_model.kernels.same_bits import KernelKind
from tests.expert_workers.fakes import make_info

AMX = KernelKind("amx", "amx", ("amx", "avx512bf16", "avx512", "avx2", "generic"))
BF16 = KernelKind("avx512bf16", "avx512bf16", ("avx512bf16", "avx512", "avx2", "generic"))
AVX512 = KernelKind("avx512", "fused", ("avx512", "avx2", "generic"))
AVX2 = KernelKind("avx2", "fused", ("avx2", "generic"))
PLAIN = KernelKind("generic", "generic", ("generic",))
TORCH = KernelKind("torch", "torch")


def workers(*kinds: KernelKind | None) -> list[SupervisedWorker]:
    """Ready, by rank."""
    info = make_info(dtype="bfloat16")
    return [
        SupervisedWorker(rank, info=replace(info, kernels=kind), address=Address(rank, 1, ""))
        for rank, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("kinds", "lines"),
    [
        ({}, []),
        ({0: BF16, 1: BF16}, []),
        ({0: AVX512, 1: AVX2}, []),
        (
            {0: BF16, 1: BF16, 2: AVX2},
            [
                "worker 2: avx2 gives experts of bfloat16 other bits than avx512bf16 of workers 0, 1: a "
                "token may depend on which of them computed it; --instruction-set=avx2 makes it the same"
            ],
        ),
        (
            {HERE: AVX512, 0: BF16, 1: AVX2, 2: AVX512, 3: PLAIN},
            [
                "worker 0: avx512bf16 gives experts of bfloat16 other bits than avx2 and avx512 of the "
                "coordinator and workers 1, 2: a token may depend on which of them computed it; "
                "--instruction-set=generic makes it the same",
                "worker 3: generic gives experts of bfloat16 other bits than avx2 and avx512 of the "
                "coordinator and workers 1, 2: a token may depend on which of them computed it; "
                "--instruction-set=generic makes it the same",
            ],
        ),
        (
            {0: AVX2, 1: TORCH},
            [
                "worker 1: torch gives experts of bfloat16 other bits than avx2 of worker 0: a token may "
                "depend on which of them computed it; install worker 1 again with a C compiler"
            ],
        ),
    ],
)
def test_each_kind_has_a_line_that_says_what_to_do(kinds: Mapping[int, KernelKind], lines: list[str]) -> None:
    assert differences(kinds, "bfloat16") == lines


def test_it_is_said_once_and_again_of_one_that_joins(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    mixed = MixedKernels()

    def said(*kinds: KernelKind | None) -> list[str]:
        caplog.clear()
        mixed.look(workers(*kinds))
        return [record.message.partition(" gives")[0] for record in caplog.records]

    assert said(BF16) == []
    assert said(BF16, None) == [], "it has loaded nothing yet"
    assert said(BF16, AVX2) == ["worker 1: avx2"]
    assert said(BF16, AVX2) == []
    assert said(BF16) == [], "it is lost"
    assert said(BF16, AVX2) == [], "it is back as it was"
    assert said(BF16, AVX2, PLAIN) == ["worker 1: avx2", "worker 2: generic"]
    assert said(BF16, BF16, PLAIN) == ["worker 2: generic"], "it came back on another machine"
    assert said(BF16, BF16) == []


def test_this_process_counts_where_it_may_compute_experts(caplog: pytest.LogCaptureFixture) -> None:
    MixedKernels(PLAIN).look(workers(AVX2, AVX2))
    (record,) = caplog.records
    assert record.message.startswith(
        "the coordinator: generic gives experts of bfloat16 other bits than avx2"
    )


@pytest.mark.parametrize(
    ("here", "remedy"),
    [
        (None, "--instruction-set=avx512bf16 makes it the same"),
        (AVX2, "--instruction-set=avx2 makes it the same"),
        (TORCH, "install the coordinator again with a C compiler"),
    ],
)
def test_a_coordinator_without_experts_can_use_the_remedy(
    here: KernelKind | None, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is started with the same instruction set, and its own bits are no difference."""
    mixed = MixedKernels(here, computes_here=False)
    mixed.look(workers(AMX, AMX))
    assert not caplog.records
    mixed.look(workers(AMX, AMX, BF16))
    (record,) = caplog.records
    assert record.message == (
        "worker 2: avx512bf16 gives experts of bfloat16 other bits than amx of workers 0, 1: a token may "
        f"depend on which of them computed it; {remedy}"
    )
