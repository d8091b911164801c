"""The top-K router and its loss.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.kernels.linear import TorchLinear as Linear
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import RouterWeights, Routing, RuledRouter, load_balancing_loss, row_selection
from moe_model.layers.router_rules import SoftmaxOfTopK
from tests.native import KERNELS


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


@dataclass(frozen=True)
class SigmoidOfTopK:
    """A rule that kernels have no code for: it is chosen by one number and weighs by another."""

    def check(self, n_experts: int) -> None: ...

    def __call__(
        self,
        logits_RE: Tensor,
        allowed_RE: Tensor | None,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert correction_E is not None
        scores_RE = logits_RE.sigmoid()
        chosen_by_RE = scores_RE + correction_E
        if allowed_RE is not None:
            chosen_by_RE = chosen_by_RE.masked_fill(~allowed_RE, float("-inf"))
        expert_ids_RK = chosen_by_RE.topk(top_k, dim=-1).indices
        weights_RK = scores_RE.gather(1, expert_ids_RK)
        return weights_RK / weights_RK.sum(-1, keepdim=True), expert_ids_RK


@pytest.mark.parametrize("choice", KERNELS)
def test_any_rule_routes_with_any_kernels_and_any_selection(choice: KernelChoice) -> None:
    correction_E = torch.tensor([0.0, 3.0, 0.0, -3.0, 0.0])
    weights, x_TD = RouterWeights(torch.randn(5, 8), torch.randn(5), correction_E), torch.randn(6, 8)
    made = choose_kernels(choice, "cpu", 1).router(SigmoidOfTopK(), weights, 2)
    assert weights.bias_E is not None
    scores_TE = (x_TD @ weights.weight_ED.T + weights.bias_E).sigmoid()
    routing = made(x_TD)
    assert (routing.expert_ids_TK[:, 0] == 1).all(), "the bias chooses"
    expected_TK = scores_TE.gather(1, routing.expert_ids_TK)
    expected_TK = expected_TK / expected_TK.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.weights_TK, expected_TK, rtol=1e-5, atol=1e-6)
    runs = [(ExpertSelection(allowed=(0, 3)), 2), (ExpertSelection(top_k=1), 1), (None, 3)]
    selected = made(x_TD, row_selection(runs, 5, 2))
    assert {frozenset(ids) for ids in selected.expert_ids_TK[:2].tolist()} == {frozenset({0, 3})}
    assert selected.expert_ids_TK[2].tolist() == [1, 5]
    assert torch.equal(selected.expert_ids_TK[3:], routing.expert_ids_TK[3:])


def test_softmax_of_the_chosen_is_softmax_of_all_renormalised() -> None:
    """The rule of Mixtral's authors, in the order of their code."""
    logits_RE = torch.randn(20, 9, dtype=torch.float64)
    weights_RK, expert_ids_RK = SoftmaxOfTopK()(logits_RE, None, 3)
    top_RK, ids_RK = torch.softmax(logits_RE, dim=-1).topk(3, dim=-1)
    assert torch.equal(expert_ids_RK, ids_RK)
    torch.testing.assert_close(weights_RK, top_RK / top_RK.sum(-1, keepdim=True), rtol=1e-12, atol=0)
