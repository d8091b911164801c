"""Routing in C against its rule. Shapes: T tokens, D d_model, E experts, K experts per token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.layers.expert_groups import ExpertGroups
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import RouterWeights, RuledRouter, row_selection
from moe_model.layers.router_rules import (
    CorrectedSoftmax,
    RouterRule,
    SoftmaxOfTopK,
    TopKOfSigmoid,
    TopKOfSoftmax,
)
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native.native_kernels import NativeKernels
from moe_model.kernels.native.router import NativeRouter
from tests.examples import examples

pytestmark = needs_native
RULE = SoftmaxOfTopK()


@given(st.integers(1, 40), st.booleans(), st.integers(1, 9), st.data())
@settings(max_examples=examples(100))
def test_is_the_rule_over_its_logits(
    n_experts: int, has_bias: bool, num_tokens: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, n_experts))
    weights = RouterWeights(torch.randn(n_experts, 8), torch.randn(n_experts) if has_bias else None)
    x_TD, selection = torch.randn(num_tokens, 8), None
    if data.draw(st.booleans()):
        allowed = tuple(range(data.draw(st.integers(0, n_experts - 1)), n_experts))
        runs = [(ExpertSelection(allowed=allowed), 1), (ExpertSelection(top_k=1), num_tokens)]
        selection = row_selection(runs, n_experts, top_k)
        x_TD = torch.randn(num_tokens + 1, 8)
    routing = NativeKernels(num_threads=2).router(RULE, weights, top_k)(x_TD, selection)
    expected_TE = x_TD.double() @ weights.weight_ED.double().T
    if weights.bias_E is not None:
        expected_TE += weights.bias_E.double()
    torch.testing.assert_close(routing.logits_TE.double(), expected_TE, rtol=1e-5, atol=1e-5)
    expected = RuledRouter(lambda _: routing.logits_TE, RULE, top_k)(x_TD, selection)
    assert torch.equal(routing.expert_ids_TK, expected.expert_ids_TK)
    torch.testing.assert_close(routing.weights_TK, expected.weights_TK, rtol=1e-5, atol=1e-7)


def _rules(draw: st.DataObject, n_experts: int, top_k: int) -> RouterRule:
    """Any of the rules that choose by a score."""
    num_groups = draw.draw(st.sampled_from([g for g in range(1, n_experts + 1) if n_experts % g == 0]))
    size = n_experts // num_groups
    groups = None
    if num_groups > 1 and top_k <= size * (num_groups - 1):
        num_kept = draw.draw(st.integers(-(-top_k // size), num_groups - 1))
        groups = ExpertGroups(num_groups, num_kept, size, draw.draw(st.integers(1, min(size, 3))))
    is_renormalised, scale = draw.draw(st.booleans()), draw.draw(st.sampled_from([1.0, 2.5]))
    rules: list[RouterRule] = [
        TopKOfSoftmax(is_renormalised, scale, groups),
        TopKOfSigmoid(is_renormalised, scale, groups),
        CorrectedSoftmax(draw.draw(st.sampled_from([1e-12, 0.5]))),
    ]
    return draw.draw(st.sampled_from(rules))


@given(st.integers(1, 24), st.integers(1, 40), st.data())
@settings(max_examples=examples(300))
def test_each_rule_over_its_logits(n_experts: int, num_tokens: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, n_experts))
    rule = _rules(data, n_experts, top_k)
    has_correction = not isinstance(rule, TopKOfSoftmax) and data.draw(st.booleans())
    correction_E = torch.randn(n_experts) if has_correction else None
    weights = RouterWeights(0.3 * torch.randn(n_experts, 8), None, correction_E)
    x_TD, selection = torch.randn(num_tokens, 8), None
    if data.draw(st.booleans()):
        allowed = tuple(sorted(data.draw(st.sets(st.integers(0, n_experts - 1), min_size=1))))
        runs = [(ExpertSelection(allowed=allowed), 1), (None, num_tokens)]
        selection = row_selection(runs, n_experts, top_k)
        x_TD = torch.randn(num_tokens + 1, 8)
    router = NativeKernels(num_threads=2).router(rule, weights, top_k)
    assert isinstance(router, NativeRouter), "C has it"
    routing = router(x_TD, selection)
    expected = RuledRouter(lambda _: routing.logits_TE, rule, top_k, correction_E)(x_TD, selection)
    assert torch.equal(routing.expert_ids_TK, expected.expert_ids_TK)
    torch.testing.assert_close(routing.weights_TK, expected.weights_TK, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "rule", [TopKOfSoftmax(is_renormalised=True), TopKOfSigmoid(), CorrectedSoftmax(1e-12)]
)
def test_a_number_that_is_none_shows_in_the_weights(rule: RouterRule) -> None:
    """Of other rows, in none."""
    bias_E = torch.tensor([1.0, math.nan, 2.0])
    router = NativeKernels().router(rule, RouterWeights(torch.zeros(3, 3), bias_E), 3)
    assert router(torch.ones(2, 3)).weights_TK.isnan().any(dim=1).all()


def test_the_lower_expert_comes_first_among_equal_scores() -> None:
    """Of sigmoids that all round to 1, and of groups as good as each other."""
    logits_E = torch.tensor([30.0, 40.0, 30.0, 50.0])
    weights = RouterWeights(torch.zeros(4, 3), logits_E)
    rules = TopKOfSigmoid(), TopKOfSigmoid(groups=ExpertGroups(2, 1, 2, 2))
    chosen = [
        NativeKernels().router(rule, weights, 2)(torch.ones(1, 3)).expert_ids_TK.tolist() for rule in rules
    ]
    assert chosen == [[[0, 1]], [[0, 1]]]


def test_more_groups_than_c_has_room_for_are_the_rule_over_its_logits() -> None:
    rule = TopKOfSigmoid(groups=ExpertGroups(300, 2, 1, 1))
    assert isinstance(NativeKernels().router(rule, RouterWeights(torch.randn(300, 3)), 2), RuledRouter)


def test_the_lower_expert_comes_first_among_equals_and_nan_comes_last() -> None:
    bias_E = torch.tensor([1.0, math.nan, 2.0, 1.0, 2.0, 0.0])
    router = NativeKernels().router(RULE, RouterWeights(torch.zeros(6, 3), bias_E), 6)
    assert router(torch.ones(1, 3)).expert_ids_TK.tolist() == [[2, 4, 0, 3, 5, 1]]


def test_the_number_of_threads_shows_in_no_bit() -> None:
    weights, x_TD = RouterWeights(torch.randn(64, 100)), torch.randn(200, 100)
    assert x_TD.numel() * 64 > 200_000, "below, one thread does it all"
    one, four = (NativeKernels(num_threads=number).router(RULE, weights, 8)(x_TD) for number in (1, 4))
    assert torch.equal(one.logits_TE, four.logits_TE)
    assert torch.equal(one.weights_TK, four.weights_TK)
    assert torch.equal(one.expert_ids_TK, four.expert_ids_TK)
