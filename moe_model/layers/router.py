"""Routers: which experts a token goes to and how much each counts. Nothing about where experts are.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.layers.expert_selection import ExpertSelection
from moe_model.layers.router_rules import RouterRule


@dataclass(frozen=True, slots=True, eq=False)
class RouterWeights:
    """What a router is made of; rows are experts, of any number.

    `bias_E` is added to the logits. `correction_E`, float32, counts for the choice of experts and not for
    their weights (Wang et al., "Auxiliary-Loss-Free Load Balancing Strategy", 2024).
    """

    weight_ED: Tensor
    bias_E: Tensor | None = None
    correction_E: Tensor | None = None

    def take(self, columns: Sequence[int]) -> "RouterWeights":
        """Of these experts, in this order."""
        return self._each(lambda part: part[list(columns)])

    def followed_by(self, other: "RouterWeights") -> "RouterWeights":
        """With the experts of another one behind; both have the same parts."""
        parts = zip(self._parts, other._parts, strict=True)
        return RouterWeights(
            *(None if a is None or b is None else torch.cat([a, b.to(a)]) for a, b in parts)  # type: ignore[arg-type]
        )

    @property
    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.weight_ED, self.bias_E, self.correction_E

    def _each(self, change: Callable[[Tensor], Tensor]) -> "RouterWeights":
        return RouterWeights(*(None if part is None else change(part) for part in self._parts))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Routing:
    """The router's choice for T tokens: best expert first. What the weights of a row add up to is the rule's.

    A token with fewer than K experts has expert id E, of weight 0, in the places that are left: absent.
    """

    weights_TK: Tensor
    expert_ids_TK: Tensor
    logits_TE: Tensor


@dataclass(frozen=True, slots=True)
class RowSelection:
    """A selection for each row of a batch: which experts, `allowed_TE`, and how many, `top_k_T`; the same as
    the rows that take K of them."""

    allowed_TE: Tensor
    top_k_T: Tensor
    rows_by_k: tuple[tuple[int, Tensor], ...]

    @property
    def most(self) -> int:
        """The largest K."""
        return max(top_k for top_k, _ in self.rows_by_k)


def row_selection(
    selections: Sequence[tuple[ExpertSelection | None, int]],
    n_experts: int,
    top_k: int,
    device: torch.device | str = "cpu",
) -> RowSelection | None:
    """Of runs of rows, each with its selection and its length; None when no row selects anything."""
    if all(selection is None for selection, _ in selections):
        return None
    allowed_CE = torch.zeros(len(selections), n_experts, dtype=torch.bool)
    top_k_C = torch.full((len(selections),), top_k)
    for run, (selection, _) in enumerate(selections):
        allowed = None if selection is None else selection.allowed
        allowed_CE[run, slice(None) if allowed is None else list(allowed)] = True
        num_wanted = top_k if selection is None else selection.top_k or top_k
        top_k_C[run] = min(num_wanted, int(allowed_CE[run].sum()))
    counts_C = torch.tensor([count for _, count in selections])
    top_k_T = top_k_C.repeat_interleave(counts_C)
    rows_by_k = tuple(
        (each, (top_k_T == each).nonzero().squeeze(1).to(device)) for each in sorted(set(top_k_T.tolist()))
    )
    return RowSelection(
        allowed_CE.repeat_interleave(counts_C, dim=0).to(device), top_k_T.to(device), rows_by_k
    )


@dataclass(frozen=True, slots=True)
class RuledRouter:
    """A rule over the logits of a gate.

    Runs in float32 whatever the model's dtype: a rounding here changes an expert, not a decimal.
    """

    gate: Callable[[Tensor], Tensor]
    rule: RouterRule
    top_k: int
    correction_E: Tensor | None = None

    def __call__(self, x_TD: Tensor, selection: RowSelection | None = None) -> Routing:
        logits_TE = self.gate(x_TD.float())
        if selection is not None:
            return _route_selected(self.rule, logits_TE, selection, self.correction_E)
        return Routing(*self.rule(logits_TE, None, self.top_k, self.correction_E), logits_TE)


def _route_selected(
    rule: RouterRule, logits_TE: Tensor, selection: RowSelection, correction_E: Tensor | None
) -> Routing:
    """K is that of the row that wants most; where a row has fewer, the rest are absent.

    One call per K, so that neither a row's bits nor its choice among equals depend on another's K.
    """
    num_tokens, n_experts = logits_TE.shape
    weights_TK = logits_TE.new_zeros(num_tokens, selection.most)
    expert_ids_TK = torch.full((num_tokens, selection.most), n_experts, device=logits_TE.device)
    for top_k, rows_R in selection.rows_by_k:
        allowed_RE = selection.allowed_TE[rows_R]
        weights_RK, expert_ids_RK = rule(logits_TE[rows_R], allowed_RE, top_k, correction_E)
        weights_TK[rows_R, :top_k] = weights_RK
        expert_ids_TK[rows_R, :top_k] = expert_ids_RK
    return Routing(weights_TK, expert_ids_TK, logits_TE)


def load_balancing_loss(routing: Routing, weight: float = 0.01) -> Tensor:
    """`weight · E · Σ_i f_i · P_i` over the T tokens of one layer; a float32 scalar.

    f_i is the fraction of tokens whose K experts contain i (Σ f = K), P_i the mean softmax probability of i
    over all E. Source: Switch Transformer (Fedus et al., 2021), equations 4 to 6, for top K.
    """
    chosen_TE = torch.zeros_like(routing.logits_TE).scatter_(1, routing.expert_ids_TK, 1.0)
    return weight * _balance(chosen_TE, torch.softmax(routing.logits_TE, dim=-1))


def load_balancing_loss_of_all(
    routings: Sequence[Routing], top_k: int, is_text_T: Tensor | None = None
) -> Tensor:
    """`E · Σ_i f_i · P_i` over the tokens of all layers together, without a weight: what the published
    mixture-of-experts models call their auxiliary loss. The K experts are those of the largest logits. Where
    `is_text_T` is false a token is padding, and does not count."""
    tokens = slice(None) if is_text_T is None else is_text_T
    logits_TE = torch.cat([routing.logits_TE[tokens] for routing in routings])
    probs_TE = torch.softmax(logits_TE, dim=-1)
    chosen_TE = torch.zeros_like(probs_TE).scatter_(1, probs_TE.topk(top_k, dim=-1).indices, 1.0)
    return _balance(chosen_TE, probs_TE)


def _balance(chosen_TE: Tensor, probs_TE: Tensor) -> Tensor:
    return chosen_TE.shape[-1] * (chosen_TE.mean(dim=0) * probs_TE.mean(dim=0)).sum()
