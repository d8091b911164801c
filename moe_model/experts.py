"""Where experts run: the seam, and the backend that runs them all in this process."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from moe_model.dispatch import Expert, ExpertKey, combine, compute_segments, group_by_expert, scatter_pairs
from moe_model.router import Routing


class ExpertBackend(Protocol):
    """Runs the experts of a layer, wherever they are."""

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """Returns y_TD = Σ_k weight_k · expert_k(x), in x's dtype and on x's device."""


class LocalExperts:
    """All experts in this process; the specification that every other backend must equal."""

    def __init__(self, experts: Mapping[ExpertKey, Expert], n_experts: int) -> None:
        self._experts = experts
        self._n_experts = n_experts

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        num_tokens, top_k = routing.expert_ids_TK.shape
        groups = group_by_expert(routing.expert_ids_TK, self._n_experts)
        x_PD = x_TD[groups.order_P // top_k]
        y_PD = compute_segments(self._experts, layer, x_PD, groups.segments)
        return combine(routing.weights_TK, scatter_pairs(y_PD, groups.order_P, num_tokens, top_k))
