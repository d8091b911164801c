"""Grouping, scattering and combining are inverse and exact.

Shapes: T tokens, D d_model, E experts, K experts per token, P pairs.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_model.layers.dispatch import combine, compute_segments, group_by_expert, scatter_pairs


@st.composite
def choices(draw: st.DrawFn) -> tuple[int, Tensor]:
    """(number of experts, expert_ids_TK with distinct experts in each row)."""
    n_experts = draw(st.integers(1, 9))
    top_k = draw(st.integers(1, n_experts))
    row = st.permutations(range(n_experts)).map(lambda ids: ids[:top_k])
    return n_experts, torch.tensor(draw(st.lists(row, min_size=1, max_size=12)))


@given(choices())
def test_groups_are_a_stable_sort_of_all_pairs(choice: tuple[int, Tensor]) -> None:
    n_experts, ids_TK = choice
    groups = group_by_expert(ids_TK, n_experts)
    pairs = list(enumerate(ids_TK.flatten().tolist()))
    assert groups.order_P.tolist() == [index for index, _ in sorted(pairs, key=lambda pair: pair[1])]
    assert groups.counts_E == [sum(expert == wanted for _, expert in pairs) for wanted in range(n_experts)]
    assert groups.segments == [(e, count) for e, count in enumerate(groups.counts_E) if count]


@given(choices())
def test_scatter_undoes_the_grouping(choice: tuple[int, Tensor]) -> None:
    n_experts, ids_TK = choice
    num_tokens, top_k = ids_TK.shape
    y_TKD = torch.arange(num_tokens * top_k * 3).float().view(num_tokens, top_k, 3)
    order_P = group_by_expert(ids_TK, n_experts).order_P
    y_PD = y_TKD.view(-1, 3)[order_P]
    assert torch.equal(scatter_pairs(y_PD, order_P, num_tokens, top_k), y_TKD)


@given(choices())
def test_each_expert_computes_its_own_rows(choice: tuple[int, Tensor]) -> None:
    n_experts, ids_TK = choice
    experts = {expert: _Adds(100 + expert) for expert in range(n_experts)}
    groups = group_by_expert(ids_TK, n_experts)
    num_tokens, top_k = ids_TK.shape
    x_TD = torch.arange(num_tokens).float().unsqueeze(1) * 1000
    y_PD = compute_segments(experts, x_TD[groups.order_P // top_k], groups.segments)
    y_TKD = scatter_pairs(y_PD, groups.order_P, num_tokens, top_k)
    assert torch.equal(y_TKD.squeeze(-1), x_TD + 100 + ids_TK)
    assert sum(expert.num_calls for expert in experts.values()) == len(groups.segments)


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 2**32 - 1),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_combine_adds_in_float32_in_the_order_of_k(
    num_tokens: int, top_k: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights_TK = torch.rand(num_tokens, top_k, generator=generator)
    y_TKD = torch.randn(num_tokens, top_k, 7, generator=generator).to(dtype)
    combined_TD = combine(weights_TK, y_TKD)
    assert combined_TD.dtype == dtype
    for token in range(num_tokens):
        total_D = torch.zeros(7)
        for k in range(top_k):
            total_D = total_D + weights_TK[token, k] * y_TKD[token, k].float()
        assert torch.equal(combined_TD[token], total_D.to(dtype))
        alone_1D = combine(weights_TK[token : token + 1], y_TKD[token : token + 1])
        assert torch.equal(alone_1D[0], combined_TD[token]), "a token's sum depends on its neighbours"


class _Adds:
    """An expert that adds a number and counts its calls."""

    def __init__(self, number: float) -> None:
        self._number = number
        self.num_calls = 0

    def __call__(self, x_RD: Tensor) -> Tensor:
        self.num_calls += 1
        return x_RD + self._number
