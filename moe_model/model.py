"""The only forward pass: embed -> L x (attend, route, experts) -> norm -> head.

Shapes: T tokens of any number of sequences, D d_model, R rows that need logits, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.experts import ExpertBackend
from moe_model.layers import Attend, SharedModel
from moe_model.router import Routing, RowSelection

# Called with (layer, routing) after each router, for those who want to watch.
Observe = Callable[[int, Routing], None]


class Model:
    """A decoder whose attention and whose experts are passed in."""

    def __init__(self, config: ModelConfig, shared: SharedModel, experts: ExpertBackend) -> None:
        self.config = config
        self._shared = shared
        self._experts = experts

    @property
    def dtype(self) -> torch.dtype:
        return self._shared.embed.weight_VD.dtype

    @property
    def device(self) -> torch.device:
        return self._shared.embed.weight_VD.device

    def forward(
        self,
        token_ids_T: Tensor,
        positions_T: Tensor,
        attend: Attend,
        observe: Observe | None = None,
        selection: RowSelection | None = None,
    ) -> Tensor:
        """Returns the last hidden states h_TD, before the output norm."""
        x_TD = self._shared.embed(token_ids_T, positions_T)
        for layer, block in enumerate(self._shared.blocks):
            q_THd, k_TGd, v_TGd = block.attention.project(block.attn_norm(x_TD), positions_T)
            x_TD = x_TD + block.attention.merge(attend(layer, q_THd, k_TGd, v_TGd))
            n_TD = block.ffn_norm(x_TD)
            routing = block.router(n_TD, selection)
            if observe is not None:
                observe(layer, routing)
            x_TD = x_TD + self._experts.forward(layer, n_TD, routing)
        return x_TD

    def logits(self, h_RD: Tensor) -> Tensor:
        """Returns float32 logits_RV of the given rows."""
        return self._shared.head(self._shared.output_norm(h_RD)).float()
