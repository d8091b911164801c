"""Expert selections: masked before the top K, for some rows of a batch, and invisible to the others."""

from dataclasses import replace
from itertools import count

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_model.kernels.linear import TorchLinear as Linear
from moe_model.layers.dispatch import group_by_expert, scatter_pairs
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import Routing, RuledRouter, row_selection
from moe_model.layers.router_rules import SoftmaxOfTopK
from tests.examples import examples
from tests.expert_workers.fakes import make_config, make_local, make_pool, make_rows
from tests.models import drain, make_request, random_model, random_reference, tiny_engine

E, K, D = 5, 2, 8
SELECTIONS = st.one_of(
    st.none(),
    st.builds(
        ExpertSelection,
        st.one_of(st.none(), st.sets(st.integers(0, E - 1), min_size=1).map(lambda s: tuple(sorted(s)))),
        st.one_of(st.none(), st.integers(1, E)),
    ),
)
RULE = SoftmaxOfTopK()
ROUTER = RuledRouter(Linear(torch.randn(E, D, generator=torch.Generator().manual_seed(3))), RULE, K)


def route(x_TD: torch.Tensor, selections: list[tuple[ExpertSelection | None, int]]) -> Routing:
    return ROUTER(x_TD, row_selection(selections, E, K))


@settings(deadline=None)
@given(st.lists(st.tuples(SELECTIONS, st.integers(1, 3)), min_size=1, max_size=5))
def test_every_row_has_its_own_experts(selections: list[tuple[ExpertSelection | None, int]]) -> None:
    num_rows = sum(n for _, n in selections)
    x_TD = torch.randn(num_rows, D, generator=torch.Generator().manual_seed(num_rows))
    routing, row = route(x_TD, selections), 0
    for selection, n in selections:
        for _ in range(n):
            allowed = set(range(E))
            if selection is not None and selection.allowed is not None:
                allowed = set(selection.allowed)
            wanted = K if selection is None else selection.top_k or K
            logits_E = routing.logits_TE[row]
            best = sorted(allowed, key=lambda e: -logits_E[e].item())[: min(wanted, len(allowed))]
            present = [e for e in routing.expert_ids_TK[row].tolist() if e < E]
            assert present == best
            weights = routing.weights_TK[row, : len(best)]
            torch.testing.assert_close(weights, torch.softmax(logits_E[best], -1))
            assert not routing.weights_TK[row, len(best) :].any()
            row += 1


@settings(deadline=None, max_examples=examples(40))
@given(st.lists(SELECTIONS, min_size=1, max_size=5), st.integers(1, 5))
def test_neither_neighbours_nor_workers_show_in_a_rows_bits(
    selections: list[ExpertSelection | None], num_workers: int
) -> None:
    config = make_config()
    local = make_local(config)
    pool, _ = make_pool(config, num_workers, 1)
    x_TD = make_rows(len(selections), config)
    gate = torch.randn(config.n_experts, config.d_model, generator=torch.Generator().manual_seed(3))
    router = RuledRouter(Linear(gate), RULE, K)
    runs = [(selection, 1) for selection in selections]
    routing = router(x_TD, row_selection(runs, E, K))
    y_TD = local.forward(0, x_TD, routing)
    assert torch.equal(pool.forward(0, x_TD, routing), y_TD)
    for row, selection in enumerate(selections):
        alone = router(x_TD[row : row + 1], row_selection([(selection, 1)], E, K))
        torch.testing.assert_close(local.forward(0, x_TD[row : row + 1], alone)[0], y_TD[row])


def test_absent_pairs_are_sent_to_nobody() -> None:
    routing = route(torch.randn(2, D), [(ExpertSelection((1,), None), 1), (ExpertSelection(None, 4), 1)])
    groups = group_by_expert(routing.expert_ids_TK, E)
    assert sum(groups.counts_E) == 5
    assert len(groups.order_P) == 5
    y_TKD = scatter_pairs(torch.ones(5, D), groups.order_P, 2, 4)
    assert y_TKD.sum(dim=(1, 2)).tolist() == [D, 4 * D]


def test_without_a_selection_nothing_is_built() -> None:
    assert row_selection([(None, 3), (None, 1)], E, K) is None


@pytest.mark.parametrize(
    "selection",
    [ExpertSelection((0, 3)), ExpertSelection((2,)), ExpertSelection(None, 1), ExpertSelection((1, 2, 3), 3)],
)
def test_the_engine_equals_the_oracle_beside_requests_without(selection: ExpertSelection) -> None:
    reference = random_reference()
    engine = tiny_engine(random_model(), max_step_tokens=7)
    names = count()
    for number in range(4):
        request = make_request(str(next(names)), (1, 2, 3, 4 + number), 9)
        engine.submit(replace(request, experts=selection if number % 2 else None))
    results = drain(engine)
    for number in range(4):
        prompt = torch.tensor([1, 2, 3, 4 + number])
        chosen = selection if number % 2 else None
        expected = reference.generate(prompt, 9, temperature=0, selection=chosen)[0, 4:].tolist()
        assert results[str(number)].token_ids == expected


@pytest.mark.parametrize("n_experts", [5, 16, 128])
def test_among_equals_a_rows_choice_depends_on_nobody_else(n_experts: int) -> None:
    """A router of zeros, which is one of ModularForge's own, makes all experts equal."""
    router = RuledRouter(Linear(torch.zeros(n_experts, 8)), RULE, 2)
    x_TD = torch.randn(6, 8)
    plain = router(x_TD).expert_ids_TK
    for top_k in (1, 3, 4, 5):
        selection = row_selection([(None, 4), (ExpertSelection(top_k=top_k), 2)], n_experts, 2)
        assert torch.equal(router(x_TD, selection).expert_ids_TK[:4, :2], plain[:4])
