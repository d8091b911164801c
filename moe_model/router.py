"""Routers: which experts a token goes to and how much each counts. Nothing about where experts are.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.linear import Linear


@dataclass(frozen=True, slots=True)
class Routing:
    """The router's choice for T tokens: best expert first, weights summing to 1 over K."""

    weights_TK: Tensor
    expert_ids_TK: Tensor
    logits_TE: Tensor


@dataclass(frozen=True, slots=True)
class TopKRouter:
    """Takes the K largest logits, then softmax over those K only.

    Runs in float32 whatever the model's dtype: a rounding here changes an expert, not a decimal.
    """

    gate: Linear
    top_k: int

    def __call__(self, x_TD: Tensor) -> Routing:
        logits_TE = self.gate(x_TD.float())
        top_TK, expert_ids_TK = logits_TE.topk(self.top_k, dim=-1)
        return Routing(torch.softmax(top_TK, dim=-1), expert_ids_TK, logits_TE)


def load_balancing_loss(routing: Routing, weight: float = 0.01) -> Tensor:
    """`weight · E · Σ_i f_i · P_i` over the T tokens of one layer; a float32 scalar.

    f_i is the fraction of tokens whose K experts contain i (Σ f = K), P_i the mean softmax probability of i
    over all E. Source: Switch Transformer (Fedus et al., 2021), equations 4 to 6, for top K.
    """
    n_experts = routing.logits_TE.shape[-1]
    chosen_TE = torch.zeros_like(routing.logits_TE).scatter_(1, routing.expert_ids_TK, 1.0)
    probs_TE = torch.softmax(routing.logits_TE, dim=-1)
    return weight * n_experts * (chosen_TE.mean(dim=0) * probs_TE.mean(dim=0)).sum()
