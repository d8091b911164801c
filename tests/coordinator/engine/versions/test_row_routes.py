"""Rows of several versions in one batch: to each what its own version's routers say of it alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.versions.row_routes import LayerColumns, RowRoutes, Run
from moe_model.kernels.choice import KernelChoice, choose_kernels
from moe_model.layers.dense import Gate
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import RouterWeights, row_selection
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.versions.expert_versions import ExpertModule
from moe_model.versions.model_version import ModelVersion, RoutedLayer, in_columns
from tests.examples import examples
from tests.native import KERNELS

D, K, CPU = 8, 2, torch.device("cpu")
SELECTIONS = st.one_of(
    st.none(),
    st.builds(
        ExpertSelection,
        st.one_of(st.none(), st.just((3, 4, 5)), st.just((3,))),
        st.one_of(st.none(), st.integers(1, 4)),
    ),
)


def versions(choice: KernelChoice, *, equal: bool) -> list[ModelVersion]:
    """Of one layer: as it was, with expert 1 in another version, with one more, and without expert 0.

    `equal`: all experts are the same to the routers, so only their order decides.
    """
    kernels = choose_kernels(choice, "cpu", 1)
    gate_ED = torch.randn(5, D, generator=torch.Generator().manual_seed(2)) * (not equal)
    more_ED = torch.cat([gate_ED, gate_ED[:1] * 2])
    plain = tuple(ExpertModule(0, expert, expert) for expert in range(5))
    replaced = (plain[0], ExpertModule(0, 5, 1, 1), *plain[2:])
    more = (*replaced, ExpertModule(0, 6, 5))
    gates = [RouterWeights(weight_ED) for weight_ED in (gate_ED, gate_ED, more_ED, more_ED[1:])]
    contents = zip((plain, replaced, more, more[1:]), gates, strict=True)
    layers = [
        RoutedLayer(modules, Gate(kernels.router(SoftmaxOfTopK(), weights, K), weights))
        for modules, weights in contents
    ]
    return [ModelVersion(number, (layer,)) for number, layer in enumerate(layers)]


RUNS = st.lists(st.tuples(st.integers(0, 3), SELECTIONS, st.integers(1, 3)), min_size=1, max_size=6)


@pytest.mark.parametrize("choice", KERNELS)
@pytest.mark.parametrize("equal", [False, True])
@settings(max_examples=examples(60))
@given(RUNS)
def test_each_row_is_routed_by_its_own_generation(
    choice: KernelChoice, equal: bool, picked: list[tuple[int, ExpertSelection | None, int]]
) -> None:
    all_of = versions(choice, equal=equal)
    runs = [Run(all_of[number], selection, count) for number, selection, count in picked]
    columns = LayerColumns([version.layers[0] for version in all_of], CPU)
    num_rows = sum(run.num_rows for run in runs)
    x_TD = torch.randn(num_rows, D, generator=torch.Generator().manual_seed(num_rows))
    routing = RowRoutes(runs, (columns,), K, CPU)(0, x_TD)
    row = 0
    for run in runs:
        layer, rows = run.version.layers[0], slice(row, row + run.num_rows)
        selection = row_selection(
            [(in_columns(run.selection, layer.experts), run.num_rows)], len(layer.modules), K
        )
        alone = layer.router(x_TD[rows], selection)
        top_k = alone.weights_TK.shape[1]
        mine = modules(columns.modules, routing.expert_ids_TK[rows])
        assert mine == modules(layer.modules, alone.expert_ids_TK)
        torch.testing.assert_close(routing.weights_TK[rows, :top_k], alone.weights_TK)
        assert not routing.weights_TK[rows, top_k:].any()
        if choice == "native":
            assert torch.equal(routing.weights_TK[rows, :top_k], alone.weights_TK), "to the last bit"
        row += run.num_rows


def modules(columns: Sequence[ExpertModule], ids_TK: Tensor) -> list[list[ExpertModule]]:
    """Whom each row goes to, absent ones left out."""
    return [[columns[column] for column in row if column < len(columns)] for row in ids_TK.tolist()]


def test_one_generation_of_its_own_columns_is_left_as_it_is() -> None:
    (first, *_) = versions("torch", equal=False)
    columns = LayerColumns(first.layers, CPU)
    x_TD = torch.randn(3, D)
    routing = first.route(0, x_TD)
    assert columns.placed(first.layers[0], routing) is routing


def test_columns_are_ordered_by_expert_then_version() -> None:
    all_of = versions("torch", equal=False)
    columns = LayerColumns([each.layers[0] for each in reversed(all_of)], CPU)
    assert [(m.expert, m.version) for m in columns.modules] == [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 0),
    ]


def test_layers_that_are_cut_alike_are_cut_once() -> None:
    first, second, *_ = versions("torch", equal=False)
    twice = [ModelVersion(g.number, (*g.layers, replace(g.layers[0]))) for g in (first, second)]
    columns = [LayerColumns([g.layers[n] for g in twice], CPU) for n in range(2)]
    routes = RowRoutes([Run(twice[0], None, 1), Run(twice[1], None, 2)], columns, K, CPU)
    x_TD = torch.randn(3, D)
    assert torch.equal(routes(0, x_TD).expert_ids_TK, routes(1, x_TD).expert_ids_TK)
    assert len(routes._cut) == 1
