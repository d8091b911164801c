"""All experts of a layer in two grouped products, three with a gate: for GPUs, where a product per expert
starves the device.

Nothing here waits for the device: how many rows an expert has stays there. Shapes: T tokens, R rows, P pairs,
D d_model, F hidden size, E experts here, K experts per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.kernels.base import Segments
from moe_model.kernels.linear import ACTIVATIONS, TorchLinear
from moe_model.layers.dispatch import Expert, ExpertKey, by_layer, combine, sum_pairs
from moe_model.layers.expert_ffn import ExpertFFN, gate_activation, gated
from moe_model.layers.norms import TorchNorm, normalised
from moe_model.layers.router import Routing
from moe_model.layers.specs import ExpertSpec


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """The modules of one layer, all of one spec, by their place in `slots`; `tensors` are those of all of
    them by canonical name, stacked."""

    slots: tuple[int, ...]
    spec: ExpertSpec
    tensors: Mapping[str, Tensor]


class GroupedBank:
    """An ExpertBank over stacked weights, which are copies: the modules may go."""

    in_c = None

    def __init__(self, layers: Mapping[int, _Layer]) -> None:
        self._layers = layers
        self._places = {layer: _places(stacked) for layer, stacked in layers.items()}

    @classmethod
    def of(cls, experts: Mapping[ExpertKey, Expert]) -> Self:
        return cls({layer: _stack(found) for layer, found in by_layer(experts).items()})

    def with_layer(self, layer: int, slots: Sequence[int], new: Mapping[int, Expert]) -> "GroupedBank":
        """Copies the layer's weights once; the device holds both for a moment."""
        layers = {each: stacked for each, stacked in self._layers.items() if each != layer}
        parts = [self._layers[layer]] if layer in self._layers else []
        if new:
            parts.insert(0, _stack(new))
        if slots:
            layers[layer] = _taken(parts, slots)
        return GroupedBank(layers)

    def run_pairs(self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments) -> Tensor:
        x_PD = x_RD if row_index_P is None else x_RD[row_index_P]
        where = self._places[layer]
        places = torch.tensor([where[slot] for slot, _ in segments], device=x_RD.device)
        counts = torch.tensor([count for _, count in segments], device=x_RD.device)
        weights = self._layers[layer]
        places_P = places.repeat_interleave(counts, output_size=len(x_PD))
        order_P = torch.argsort(places_P, stable=True)
        y_PD = torch.empty(x_PD.shape, dtype=torch.float32, device=x_PD.device)
        y_PD[order_P] = _run(weights, x_PD[order_P], places_P[order_P]).float()
        return y_PD

    def run_rows(
        self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments, weights_P: Tensor
    ) -> Tensor:
        y_PD = self.run_pairs(layer, x_RD, row_index_P, segments)
        return sum_pairs(y_PD, weights_P, row_index_P, len(x_RD))

    def run_tokens(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        weights = self._layers[layer]
        num_tokens, top_k = routing.expert_ids_TK.shape
        num_columns = routing.logits_TE.shape[1]
        assert len(weights.slots) % num_columns == 0
        columns_P = routing.expert_ids_TK.flatten()
        order_P = torch.argsort(columns_P, stable=True)
        slices_TKD = []
        for first in range(0, len(weights.slots), num_columns):
            # An absent expert's place comes after all others, and its rows are of no group.
            places_P = torch.where(columns_P < num_columns, columns_P + first, len(weights.slots))
            y_sorted_PD = _run(weights, x_TD[order_P // top_k], places_P[order_P])
            y_PD = torch.empty_like(y_sorted_PD)
            y_PD[order_P] = y_sorted_PD
            slices_TKD.append(y_PD.view(num_tokens, top_k, -1))
        return combine(routing.weights_TK, *slices_TKD)


def _run(layer: _Layer, x_PD: Tensor, places_P: Tensor) -> Tensor:
    """Rows sorted by place; zeros where the place is that of an absent expert."""
    spec, tensors = layer.spec, layer.tensors
    num_here = len(layer.slots)
    ends_E = torch.searchsorted(places_P, torch.arange(num_here, device=x_PD.device), right=True).int()
    here_P = places_P.clamp(max=num_here - 1)

    def product(part: str, rows_PI: Tensor) -> Tensor:
        y_PO = F.grouped_mm(rows_PI, tensors[f"{part}.weight"].transpose(1, 2), offs=ends_E)
        bias_EO = tensors.get(f"{part}.bias")
        return y_PO if bias_EO is None else y_PO + bias_EO[here_P]

    n_PD = x_PD
    if spec.norm is not None:
        n_PD = normalised(spec.norm, x_PD, tensors["norm.weight"][here_P])
        if "norm.bias" in tensors:
            n_PD = n_PD + tensors["norm.bias"][here_P]
    h_PF = product("up", n_PD)
    if spec.is_gated:
        h_PF = gated(spec, ACTIVATIONS[gate_activation(spec)](product("gate", n_PD)), h_PF)
    else:
        h_PF = ACTIVATIONS[spec.activation](h_PF)
    # Rows after the last group were never written.
    return torch.where((places_P < num_here).unsqueeze(1), product("down", h_PF), 0)


def _places(stacked: _Layer) -> dict[int, int]:
    return {slot: place for place, slot in enumerate(stacked.slots)}


def _taken(parts: Sequence[_Layer], slots: Sequence[int]) -> _Layer:
    """The modules of `slots` from the first of the parts that has them."""
    rows: dict[int, tuple[_Layer, int]] = {}
    for part in reversed(parts):
        rows |= {slot: (part, place) for slot, place in _places(part).items()}
    chosen = [rows[slot] for slot in slots]
    first = chosen[0][0]
    tensors = {
        name: torch.stack([part.tensors[name][place] for part, place in chosen]) for name in first.tensors
    }
    return _Layer(tuple(slots), first.spec, tensors)


def _stack(experts: Mapping[int, Expert]) -> _Layer:
    found = [_tensors(module) for module in experts.values()]
    spec = found[0][0]
    assert {each for each, _ in found} == {spec}
    tensors = {name: torch.stack([tensors[name] for _, tensors in found]) for name in found[0][1]}
    return _Layer(tuple(experts), spec, tensors)


def _tensors(module: Expert) -> tuple[ExpertSpec, dict[str, Tensor]]:
    """Spec and tensors, by canonical name, of a module that torch's kernels made."""
    assert isinstance(module, ExpertFFN)
    tensors: dict[str, Tensor | None] = {}
    for name, linear in (("gate", module.gate), ("up", module.up), ("down", module.down)):
        if linear is not None:
            assert isinstance(linear, TorchLinear)
            tensors |= {f"{name}.weight": linear.weight_OI, f"{name}.bias": linear.bias_O}
    if module.norm is not None:
        assert isinstance(module.norm, TorchNorm)
        tensors |= {"norm.weight": module.norm.weight_D, "norm.bias": module.norm.bias_D}
    return module.spec, {name: tensor for name, tensor in tensors.items() if tensor is not None}
