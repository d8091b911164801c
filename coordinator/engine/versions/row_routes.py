"""The routing of a batch whose rows may be of different versions of the model, or may select experts.

Each row goes through its own version's routers, with the others of that version: what they say is what
they would say if there were no other. Shapes: T tokens, R rows of one router, D d_model, E columns, K experts
per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router import Routing, RowSelection, row_selection
from moe_model.versions.expert_versions import ExpertModule
from moe_model.versions.model_version import ModelVersion, RoutedLayer, in_columns


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of one sequence."""

    version: ModelVersion
    selection: ExpertSelection | None
    num_rows: int


class LayerColumns:
    """The columns of one layer that the experts' backend knows, and where each router's outputs are."""

    def __init__(self, layers: Sequence[RoutedLayer], device: torch.device) -> None:
        """Of the distinct routed layers that are in use."""
        modules = {module for layer in layers for module in layer.modules}
        # By expert id, and so is each router's part of them.
        self.modules = tuple(sorted(modules, key=lambda module: (module.expert, module.version)))
        self._places = {layer: self._places_of(layer, device) for layer in layers}

    def _places_of(self, layer: RoutedLayer, device: torch.device) -> Tensor | None:
        """The column of each output, then that of an absent one; None where they are the same."""
        if layer.modules == self.modules:
            return None
        column_of: dict[ExpertModule, int] = {module: c for c, module in enumerate(self.modules)}
        return torch.tensor(
            [*(column_of[module] for module in layer.modules), len(self.modules)], device=device
        )

    def placed(self, layer: RoutedLayer, routing: Routing) -> Routing:
        """A routing of one router's in columns. Logits of what it does not know are -inf."""
        places = self._places[layer]
        if places is None:
            return routing
        logits_TE = routing.logits_TE.new_full((len(routing.logits_TE), len(self.modules)), float("-inf"))
        logits_TE[:, places[:-1]] = routing.logits_TE
        return Routing(routing.weights_TK, places[routing.expert_ids_TK], logits_TE)


# Rows (None: all) of one router, and what they select of it.
_Part = tuple[Tensor | None, RowSelection | None]


class RowRoutes:
    """A `model.Route` for the rows of one batch."""

    def __init__(
        self, runs: Sequence[Run], columns: Sequence[LayerColumns], top_k: int, device: torch.device
    ) -> None:
        self._runs = runs
        self._columns = columns
        self._top_k = top_k
        self._device = device
        self._cut: dict[object, list[_Part]] = {}

    def __call__(self, layer: int, x_TD: Tensor) -> Routing:
        columns = self._columns[layer]
        of_run = [run.version.layers[layer] for run in self._runs]
        routed = list(dict.fromkeys(of_run))
        parts = self._parts(of_run, routed)
        if len(routed) == 1:
            return columns.placed(routed[0], routed[0].router(x_TD, parts[0][1]))
        routings = [
            (rows, columns.placed(each, each.router(x_TD[rows], selection)))
            for each, (rows, selection) in zip(routed, parts, strict=True)
        ]
        return _joined(routings, len(x_TD), len(columns.modules))

    def _parts(self, of_run: Sequence[RoutedLayer], routed: Sequence[RoutedLayer]) -> list[_Part]:
        """One for each of `routed`; layers mostly differ in weights only, and then are cut alike."""
        numbers = tuple(map(routed.index, of_run))
        key = (numbers, tuple(each.experts for each in routed))
        if key not in self._cut:
            self._cut[key] = [self._part(numbers, n, each.experts) for n, each in enumerate(routed)]
        return self._cut[key]

    def _part(self, numbers: Sequence[int], number: int, experts: tuple[int, ...]) -> _Part:
        mine = [run for run, each in zip(self._runs, numbers, strict=True) if each == number]
        selections = [(in_columns(run.selection, experts), run.num_rows) for run in mine]
        selection = row_selection(selections, len(experts), self._top_k, self._device)
        if len(mine) == len(self._runs):
            return None, selection
        counts = torch.tensor([run.num_rows for run in self._runs])
        is_mine = torch.tensor([each == number for each in numbers]).repeat_interleave(counts)
        return is_mine.nonzero().squeeze(1).to(self._device), selection


def _joined(routings: Sequence[tuple[Tensor | None, Routing]], num_tokens: int, num_columns: int) -> Routing:
    """K is that of the rows that want most; where a row has fewer, the rest are absent."""
    first = routings[0][1]
    most = max(routing.weights_TK.shape[1] for _, routing in routings)
    weights_TK = first.weights_TK.new_zeros(num_tokens, most)
    expert_ids_TK = first.expert_ids_TK.new_full((num_tokens, most), num_columns)
    logits_TE = first.logits_TE.new_empty(num_tokens, num_columns)
    for rows, routing in routings:
        top_k = routing.weights_TK.shape[1]
        weights_TK[rows, :top_k] = routing.weights_TK
        expert_ids_TK[rows, :top_k] = routing.expert_ids_TK
        logits_TE[rows] = routing.logits_TE
    return Routing(weights_TK, expert_ids_TK, logits_TE)
