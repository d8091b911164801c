"""All experts of a layer in two grouped products: for GPUs, where a product per expert starves the device.

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
from moe_model.kernels.linear import TorchLinear
from moe_model.layers.dense import LayerNorm
from moe_model.layers.dispatch import Expert, ExpertKey, by_layer, combine, sum_pairs
from moe_model.layers.expert_ffn import GeluExpert
from moe_model.layers.router import Routing


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """Weights of the modules of one layer, by their place in `slots`."""

    slots: tuple[int, ...]
    norm_weight_ED: Tensor
    norm_bias_ED: Tensor
    eps: float
    up_EFD: Tensor
    up_bias_EF: Tensor
    down_EDF: Tensor
    down_bias_ED: Tensor


class GroupedBank:
    """An ExpertBank over stacked weights, which are copies: the modules may go."""

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
        # An absent expert's id comes after all places, and its rows are of no group.
        places_P = routing.expert_ids_TK.flatten()
        order_P = torch.argsort(places_P, stable=True)
        y_sorted_PD = _run(weights, x_TD[order_P // top_k], places_P[order_P])
        y_PD = torch.empty_like(y_sorted_PD)
        y_PD[order_P] = y_sorted_PD
        return combine(routing.weights_TK, y_PD.view(num_tokens, top_k, -1))


def _run(weights: _Layer, x_PD: Tensor, places_P: Tensor) -> Tensor:
    """Rows sorted by place; zeros where the place is nobody's."""
    num_here = len(weights.up_EFD)
    ends_E = torch.searchsorted(places_P, torch.arange(num_here, device=x_PD.device), right=True).int()
    here_P = places_P.clamp(max=num_here - 1)
    n_PD = F.layer_norm(x_PD, x_PD.shape[1:], eps=weights.eps)
    n_PD = n_PD * weights.norm_weight_ED[here_P] + weights.norm_bias_ED[here_P]
    h_PF = F.grouped_mm(n_PD, weights.up_EFD.transpose(1, 2), offs=ends_E)
    h_PF = F.gelu(h_PF + weights.up_bias_EF[here_P])
    y_PD = F.grouped_mm(h_PF, weights.down_EDF.transpose(1, 2), offs=ends_E)
    # Rows after the last group were never written.
    return torch.where((places_P < num_here).unsqueeze(1), y_PD + weights.down_bias_ED[here_P], 0)


def _places(stacked: _Layer) -> dict[int, int]:
    return {slot: place for place, slot in enumerate(stacked.slots)}


def _taken(parts: Sequence[_Layer], slots: Sequence[int]) -> _Layer:
    """The modules of `slots` from the first of the parts that has them."""
    rows: dict[int, tuple[_Layer, int]] = {}
    for part in reversed(parts):
        rows |= {slot: (part, place) for slot, place in _places(part).items()}
    chosen = [rows[slot] for slot in slots]

    def stack(name: str) -> Tensor:
        return torch.stack([getattr(part, name)[place] for part, place in chosen])

    return _Layer(
        tuple(slots),
        stack("norm_weight_ED"),
        stack("norm_bias_ED"),
        chosen[0][0].eps,
        stack("up_EFD"),
        stack("up_bias_EF"),
        stack("down_EDF"),
        stack("down_bias_ED"),
    )


def _stack(experts: Mapping[int, Expert]) -> _Layer:
    ups, downs, norms = [], [], []
    for module in experts.values():
        assert isinstance(module, GeluExpert)
        assert isinstance(module.up, TorchLinear)
        assert isinstance(module.down, TorchLinear)
        assert isinstance(module.up.norm, LayerNorm)
        ups.append(module.up)
        downs.append(module.down)
        norms.append(module.up.norm)
    return _Layer(
        tuple(experts),
        torch.stack([norm.weight for norm in norms]),
        torch.stack([norm.bias for norm in norms]),
        norms[0].eps,
        torch.stack([up.weight_OI for up in ups]),
        torch.stack([_bias(up) for up in ups]),
        torch.stack([down.weight_OI for down in downs]),
        torch.stack([_bias(down) for down in downs]),
    )


def _bias(linear: TorchLinear) -> Tensor:
    assert linear.bias_O is not None
    return linear.bias_O
