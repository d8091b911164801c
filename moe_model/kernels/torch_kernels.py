"""Kernels of torch's own operations: for any device, and the reference for all others.

Shapes: T tokens, R rows, P (row, expert) pairs, D d_model, E experts, K experts per token.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe_model.kernels.base import (
    ExpertBank,
    HeadLinear,
    HeadNorm,
    Linear,
    Norm,
    Rotary,
    Router,
    RowGate,
    Segments,
)
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.kernels.grouped import GroupedBank
from moe_model.kernels.linear import TorchHeadLinear, TorchLinear, TorchRowGate
from moe_model.kernels.quantise import rounded
from moe_model.layers.dispatch import (
    Expert,
    ExpertKey,
    by_layer,
    combine,
    compute_segments,
    group_by_expert,
    scatter_pairs,
    sum_pairs,
)
from moe_model.layers.expert_ffn import ExpertFFN, check_expert, gate_activation
from moe_model.layers.norms import TorchNorm
from moe_model.layers.rotary import TorchRotary
from moe_model.layers.router import RouterWeights, Routing, RuledRouter
from moe_model.layers.router_rules import RouterRule
from moe_model.layers.specs import Activation, ExpertSpec, NormSpec, RotarySpec
from moe_model.names import WeightForm


class TorchKernels:
    """One operation of torch after the other."""

    name = "torch"
    attend_paged = None
    cache_layout: CacheLayoutName = "token_major"
    keeps_stored = False

    def hidden_dtype(self, weights: torch.dtype) -> torch.dtype:
        return weights

    def norm(self, spec: NormSpec, weight_D: Tensor, bias_D: Tensor | None = None) -> Norm:
        return TorchNorm(spec, weight_D, bias_D)

    def head_norm(self, spec: NormSpec, weight_D: Tensor) -> HeadNorm:
        return TorchNorm(spec, weight_D)

    def linear(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        activation: Activation = "none",
        norm: Norm | None = None,
        *,
        form: WeightForm = "model",
        exact_rows: bool = False,
    ) -> Linear:
        """Of weights as `form` can say them, but kept in their own dtype; rows are not rounded."""
        return TorchLinear(rounded(weight_OI, form), bias_O, activation, norm)

    def head_linear(self, weight_HOI: Tensor, *, exact_rows: bool = False) -> HeadLinear:
        return TorchHeadLinear(weight_HOI)

    def rotary(self, spec: RotarySpec) -> Rotary:
        return TorchRotary(spec)

    def router(self, rule: RouterRule, weights: RouterWeights, top_k: int) -> Router:
        bias_E = None if weights.bias_E is None else weights.bias_E.float()
        gate = TorchLinear(weights.weight_ED.float(), bias_E)
        return RuledRouter(gate, rule, top_k, weights.correction_E)

    def row_gate(self, weight_1D: Tensor) -> RowGate:
        return TorchRowGate(TorchLinear(weight_1D))

    def expert(
        self, spec: ExpertSpec, tensors: Mapping[str, Tensor], *, form: WeightForm = "model"
    ) -> Expert:
        check_expert(spec, tensors)
        norm, gate = None, None
        if spec.norm is not None:
            norm = self.norm(spec.norm, tensors["norm.weight"], tensors.get("norm.bias"))

        def linear(part: str, activation: Activation = "none") -> Linear:
            weight_OI, bias_O = tensors[f"{part}.weight"], tensors.get(f"{part}.bias")
            return self.linear(weight_OI, bias_O, activation, form=form)

        if spec.is_gated:
            gate = linear("gate", gate_activation(spec))
        up = linear("up", "none" if spec.is_gated else spec.activation)
        return ExpertFFN(spec, norm, gate, up, linear("down"))

    def bank(self, experts: Mapping[ExpertKey, Expert]) -> ExpertBank:
        """On a GPU of bfloat16 weights, the grouped products; else one expert after the other."""
        ups = [e.up for e in experts.values() if isinstance(e, ExpertFFN)]
        weights = [up.weight_OI for up in ups if isinstance(up, TorchLinear)]
        # Grouped products want rows of 16 bytes.
        fits = bool(weights) and all(size % 8 == 0 for size in weights[0].shape)
        if fits and weights[0].is_cuda and weights[0].dtype == torch.bfloat16:
            return GroupedBank.of(experts)
        return TorchBank(by_layer(experts))


class TorchBank:
    """One expert after the other; `layers` is layer -> slot -> module."""

    in_c = None

    def __init__(self, layers: Mapping[int, Mapping[int, Expert]]) -> None:
        self._layers = layers
        self._places = {layer: list(found.values()) for layer, found in layers.items()}

    def with_layer(self, layer: int, slots: Sequence[int], new: Mapping[int, Expert]) -> "TorchBank":
        layers = {each: found for each, found in self._layers.items() if each != layer}
        if slots:
            known = {**self._layers.get(layer, {}), **new}
            layers[layer] = {slot: known[slot] for slot in slots}
        return TorchBank(layers)

    def run_pairs(self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments) -> Tensor:
        x_PD = x_RD if row_index_P is None else x_RD[row_index_P]
        return compute_segments(self._layers[layer], x_PD, segments).float()

    def run_rows(
        self, layer: int, x_RD: Tensor, row_index_P: Tensor | None, segments: Segments, weights_P: Tensor
    ) -> Tensor:
        y_PD = self.run_pairs(layer, x_RD, row_index_P, segments)
        return sum_pairs(y_PD, weights_P, row_index_P, len(x_RD))

    def run_tokens(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        num_tokens, top_k = routing.expert_ids_TK.shape
        places, num_columns = self._places[layer], routing.logits_TE.shape[1]
        assert len(places) % num_columns == 0
        groups = group_by_expert(routing.expert_ids_TK, num_columns)
        x_PD = x_TD[groups.order_P // top_k]
        slices_TKD = [
            scatter_pairs(
                compute_segments(dict(enumerate(places[first:])), x_PD, groups.segments),
                *(groups.order_P, num_tokens, top_k),
            )
            for first in range(0, len(places), num_columns)
        ]
        return combine(routing.weights_TK, *slices_TKD)
