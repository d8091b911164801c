"""The top-K router and its loss.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_model.kernels.linear import TorchLinear as Linear
from moe_model.layers.router import Routing, RuledRouter, load_balancing_loss
from moe_model.layers.router_rules import SoftmaxOfTopK


def router(gate: Linear, top_k: int) -> RuledRouter:
    return RuledRouter(gate, SoftmaxOfTopK(), top_k)


@given(
    num_tokens=st.integers(1, 20),
    n_experts=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_routing_invariants(
    num_tokens: int, n_experts: int, data: st.DataObject, seed: int, dtype: torch.dtype
) -> None:
    top_k = data.draw(st.integers(1, n_experts))
    generator = torch.Generator().manual_seed(seed)
    weight_ED = torch.randn(n_experts, 8, generator=generator)
    x_TD = torch.randn(num_tokens, 8, generator=generator).to(dtype)
    routing = router(Linear(weight_ED), top_k)(x_TD)

    assert routing.weights_TK.dtype == routing.logits_TE.dtype == torch.float32
    assert routing.expert_ids_TK.dtype == torch.int64
    assert routing.weights_TK.shape == routing.expert_ids_TK.shape == (num_tokens, top_k)
    for ids in routing.expert_ids_TK.tolist():
        assert len(set(ids)) == top_k
        assert all(0 <= expert < n_experts for expert in ids)
    torch.testing.assert_close(routing.weights_TK.sum(-1), torch.ones(num_tokens))
    assert (routing.weights_TK.diff(dim=-1) <= 0).all(), "best expert first"
    chosen_TK = routing.logits_TE.gather(1, routing.expert_ids_TK)
    assert torch.equal(chosen_TK, routing.logits_TE.sort(descending=True).values[:, :top_k])
    torch.testing.assert_close(routing.weights_TK, chosen_TK.softmax(-1))


def test_the_router_of_a_bfloat16_model_computes_in_float32() -> None:
    weight_ED, x_TD = torch.randn(5, 64), torch.randn(9, 64).bfloat16()
    exact_TE = x_TD.double() @ weight_ED.double().T
    torch.testing.assert_close(
        router(Linear(weight_ED), 2)(x_TD).logits_TE.double(), exact_TE, rtol=0, atol=1e-4
    )


def test_one_expert_gets_everything() -> None:
    routing = router(Linear(torch.randn(1, 4)), 1)(torch.randn(3, 4))
    assert routing.weights_TK.tolist() == [[1.0]] * 3
    assert routing.expert_ids_TK.tolist() == [[0]] * 3


def test_a_router_of_zeros_still_picks_different_experts() -> None:
    routing = router(Linear(torch.zeros(6, 4)), 3)(torch.randn(5, 4))
    assert all(len(set(ids)) == 3 for ids in routing.expert_ids_TK.tolist())
    torch.testing.assert_close(routing.weights_TK, torch.full((5, 3), 1 / 3))


@pytest.mark.parametrize(("n_experts", "top_k"), [(1, 1), (4, 1), (4, 3), (4, 4)])
def test_the_loss_is_the_sum_over_experts(n_experts: int, top_k: int) -> None:
    routing = router(Linear(torch.randn(n_experts, 8)), top_k)(torch.randn(10, 8))
    expected = 0.0
    for expert in range(n_experts):
        fraction = sum(expert in ids for ids in routing.expert_ids_TK.tolist()) / 10
        expected += fraction * routing.logits_TE.softmax(-1)[:, expert].mean().item()
    assert load_balancing_loss(routing).item() == pytest.approx(0.01 * n_experts * expected, rel=1e-5)


def test_a_balanced_router_has_the_loss_of_its_weight_times_k() -> None:
    ids_TK = torch.tensor([[0, 1], [2, 3]])
    routing = Routing(torch.full((2, 2), 0.5), ids_TK, torch.zeros(2, 4))
    assert load_balancing_loss(routing).item() == pytest.approx(0.01 * 2)
