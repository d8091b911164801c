"""Rules that choose among all experts' scores, against the same in plain Python, row by row.

Shapes: R rows, E experts.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_model.errors import ConfigError
from moe_model.layers.expert_groups import ExpertGroups
from moe_model.layers.router_rules import CorrectedSoftmax, TopKOfSigmoid, TopKOfSoftmax

NUM_ROWS = 9


def plain_choice(
    scores: list[float], allowed: list[bool], top_k: int, groups: ExpertGroups | None
) -> list[int]:
    """Expert ids, best first. Groups that have no allowed expert are no groups; more than `num_kept` are kept
    only while those have not K allowed experts."""
    experts = [expert for expert, is_allowed in enumerate(allowed) if is_allowed]
    if groups is not None:
        members: dict[int, list[float]] = {}
        for expert in experts:
            members.setdefault(expert // groups.size, []).append(scores[expert])
        worth = {group: sum(sorted(found)[-groups.num_counted :]) for group, found in members.items()}
        kept: set[int] = set()
        for place, group in enumerate(sorted(worth, key=lambda each: -worth[each])):
            if place < groups.num_kept or sum(len(members[each]) for each in kept) < top_k:
                kept.add(group)
        experts = [expert for expert in experts if expert // groups.size in kept]
    return sorted(experts, key=lambda expert: -scores[expert])[:top_k]


@st.composite
def choices(draw: st.DrawFn) -> tuple[int, int, ExpertGroups | None]:
    """A number of experts, K, and groups."""
    num_groups, size = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    n_experts = num_groups * size
    num_kept = draw(st.integers(1, num_groups))
    top_k = draw(st.integers(1, num_kept * size))
    return (
        n_experts,
        top_k,
        ExpertGroups.of(n_experts, num_groups, num_kept, top_k, draw(st.sampled_from([1, 2]))),
    )


@given(
    choice=choices(),
    is_sigmoid=st.booleans(),
    is_renormalised=st.booleans(),
    has_selection=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_row_gets_what_plain_python_says(
    choice: tuple[int, int, ExpertGroups | None],
    is_sigmoid: bool,
    is_renormalised: bool,
    has_selection: bool,
    seed: int,
) -> None:
    n_experts, top_k, groups = choice
    generator = torch.Generator().manual_seed(seed)
    logits_RE = 2 * torch.randn(NUM_ROWS, n_experts, generator=generator)
    # Some scores with their correction are below 0, and some corrections are far above all scores.
    correction_E = 3 * torch.randn(n_experts, generator=generator) if is_sigmoid else None
    allowed_RE = torch.ones(NUM_ROWS, n_experts, dtype=torch.bool)
    if has_selection:
        for row in range(NUM_ROWS):
            num_denied = int(torch.randint(n_experts - top_k + 1, (), generator=generator))
            allowed_RE[row, torch.randperm(n_experts, generator=generator)[:num_denied]] = False
    rule = (TopKOfSigmoid if is_sigmoid else TopKOfSoftmax)(is_renormalised, 2.5, groups)
    weights_RK, expert_ids_RK = rule(logits_RE, allowed_RE if has_selection else None, top_k, correction_E)

    for row in range(NUM_ROWS):
        allowed, logits = allowed_RE[row].tolist(), logits_RE[row].tolist()
        if is_sigmoid:
            scores = [1 / (1 + math.exp(-logit)) for logit in logits]
        else:
            total = sum(math.exp(z) for z, is_allowed in zip(logits, allowed, strict=True) if is_allowed)
            scores = [math.exp(logit) / total for logit in logits]
        added = [0.0] * n_experts if correction_E is None else correction_E.tolist()
        corrected = [score + more for score, more in zip(scores, added, strict=True)]
        expected = plain_choice(corrected, allowed, top_k, groups)
        assert expert_ids_RK[row].tolist() == expected
        weights = [scores[expert] for expert in expected]
        divisor = sum(weights) if is_renormalised else 1.0
        torch.testing.assert_close(
            weights_RK[row], torch.tensor([2.5 * weight / divisor for weight in weights])
        )


def test_a_large_correction_takes_no_digits_from_a_weight() -> None:
    logits_RE = torch.tensor([[-8.0, -9.0, 3.0]])
    correction_E = torch.tensor([30.0, 30.0, 0.0])
    weights_RK, expert_ids_RK = TopKOfSigmoid(is_renormalised=False)(logits_RE, None, 2, correction_E)
    assert expert_ids_RK.tolist() == [[0, 1]]
    torch.testing.assert_close(weights_RK, logits_RE[:, :2].sigmoid(), rtol=1e-6, atol=0)


def test_scores_of_nothing_are_weights_of_nothing() -> None:
    weights_RK, _ = TopKOfSigmoid()(torch.full((1, 4), -200.0), None, 2)
    assert weights_RK.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((7, 2, 1, 2, 1), "n_group: 7 experts cannot be in 2 groups"),
        ((4, 4, 2, 2, 2), "n_group: 4 experts cannot be in 4 groups"),
        ((8, 2, 3, 2, 1), "topk_group: 3 is more than n_group 2"),
        ((8, 4, 2, 5, 1), "topk_group: 2 groups of 2 experts have not 5"),
    ],
)
def test_groups_that_cannot_be_are_refused(sizes: tuple[int, int, int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExpertGroups.of(*sizes)


def test_a_rule_with_groups_takes_no_other_number_of_experts() -> None:
    groups = ExpertGroups.of(8, 4, 2, 2, num_counted=2)
    for rule in (TopKOfSigmoid(groups=groups), TopKOfSoftmax(is_renormalised=False, groups=groups)):
        rule.check(8)
        for n_experts in (6, 7, 12):
            with pytest.raises(ConfigError, match=f"{n_experts} experts cannot be in 4 groups of 2"):
                rule.check(n_experts)
    TopKOfSigmoid().check(5)
    assert ExpertGroups.of(8, 4, 4, 2, num_counted=2) is None
    assert ExpertGroups.of(1, 1, 1, 1, num_counted=2) is None


@given(
    n_experts=st.integers(1, 9),
    norm_min=st.sampled_from([1e-12, 0.4, 0.9]),
    has_selection=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_corrected_softmax_gives_what_plain_python_says(
    n_experts: int, norm_min: float, has_selection: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_RE = 2 * torch.randn(NUM_ROWS, n_experts, generator=generator)
    correction_E = torch.randn(n_experts, generator=generator)
    allowed_E = (
        torch.rand(n_experts, generator=generator) < 0.6 if has_selection else torch.ones(n_experts) > 0
    )
    allowed_E[int(torch.randint(n_experts, (), generator=generator))] = True
    allowed_RE = allowed_E.expand(NUM_ROWS, -1)
    top_k = int(torch.randint(1, int(allowed_E.sum()) + 1, (), generator=generator))
    rule = CorrectedSoftmax(norm_min)
    rule.check(n_experts)
    weights_RK, expert_ids_RK = rule(logits_RE, allowed_RE if has_selection else None, top_k, correction_E)

    for row, logits in enumerate(logits_RE.tolist()):
        shares = [
            math.exp(logit) * is_allowed for logit, is_allowed in zip(logits, allowed_E.tolist(), strict=True)
        ]
        scores = [share / sum(shares) for share in shares]
        corrected = [score + more for score, more in zip(scores, correction_E.tolist(), strict=True)]
        expected = plain_choice(corrected, allowed_E.tolist(), top_k, None)
        assert expert_ids_RK[row].tolist() == expected
        chosen = [scores[expert] for expert in expected]
        divisor = max(sum(chosen), norm_min)
        torch.testing.assert_close(weights_RK[row], torch.tensor([score / divisor for score in chosen]))
