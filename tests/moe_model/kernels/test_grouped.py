"""Grouped products say what one expert after the other says. Shapes: T tokens, R rows, E experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.grouped import GroupedBank
from moe_model.kernels.torch_kernels import TorchBank, TorchKernels
from moe_model.layers.dispatch import by_layer
from moe_model.layers.router import RouterWeights
from moe_model.layers.router_rules import SoftmaxOfTopK
from tests.examples import examples
from tests.models import random_weights

E, D = 5, 16
CONFIG = ModelConfig(
    d_model=D, n_heads=2, n_layers=1, d_ff=32, n_experts=E, top_k=2, vocab_size=8, max_seq_len=8
)


def _banks(
    dtype: torch.dtype, device: str, ids: tuple[int, ...] = tuple(range(E))
) -> tuple[TorchBank, GroupedBank]:
    weights = random_weights(CONFIG).experts
    experts = {
        (0, expert): family_of(CONFIG).build_expert(
            CONFIG, {name: t.to(device, dtype) for name, t in weights[0, expert].items()}, TorchKernels()
        )
        for expert in ids
    }
    return TorchBank(by_layer(experts)), GroupedBank.of(experts)


@given(st.integers(2, 40), st.integers(1, E), st.integers(0, 99))
@settings(max_examples=examples(40), deadline=None)
def test_tokens(num_tokens: int, top_k: int, seed: int) -> None:
    _check_tokens(num_tokens, top_k, seed, torch.float32, "cpu", 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO GPU: the grouped products were not run on one")
@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_tokens_on_a_gpu(top_k: int) -> None:
    _check_tokens(33, top_k, 0, torch.bfloat16, "cuda", 0.05)


def _check_tokens(
    num_tokens: int, top_k: int, seed: int, dtype: torch.dtype, device: str, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(num_tokens, D, generator=generator).to(device, dtype)
    routing = TorchKernels().router(SoftmaxOfTopK(), RouterWeights(torch.eye(E, device=device)), top_k)(
        torch.randn(num_tokens, E, generator=generator).to(device)
    )
    # A token without experts gets zeros.
    routing.expert_ids_TK[0], routing.weights_TK[0] = E, 0
    one_by_one, grouped = _banks(dtype, device)
    expected, got = one_by_one.run_tokens(0, x_TD, routing), grouped.run_tokens(0, x_TD, routing)
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def test_rows_of_a_worker_that_holds_some() -> None:
    one_by_one, grouped = _banks(torch.float32, "cpu", ids=(1, 4))
    x_RD, weights_P = torch.randn(3, D), torch.rand(4)
    index_P = torch.tensor([2, 0, 0, 1], dtype=torch.int32)
    for segments in ([(1, 3), (4, 1)], [(4, 2), (1, 2)]):
        got = grouped.run_rows(0, x_RD, index_P, segments, weights_P)
        expected = one_by_one.run_rows(0, x_RD, index_P, segments, weights_P)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
