"""Router rules: from a row's logits to its experts and their weights. A family chooses one.

A new rule is a class here. Torch runs it as it is; native kernels run it over their own logits, unless they
have code for it. Shapes: R rows, E experts, K experts per token.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moe_model.layers.expert_groups import ExpertGroups


class RouterRule(Protocol):
    """Chooses by the logits, and what corrects the choice, row by row, best expert first."""

    def check(self, n_experts: int) -> None:
        """Raises ConfigError for a number of experts that it cannot choose from."""

    def __call__(
        self,
        logits_RE: Tensor,
        allowed_RE: Tensor | None,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns weights_RK and expert_ids_RK for float32 logits.

        Only experts of `allowed_RE` are chosen (None: all), as if there were no others; every row has at
        least `top_k` of them. `correction_E` is for rules whose routers have one.
        """


@dataclass(frozen=True, slots=True)
class SoftmaxOfTopK:
    """The K largest logits, then softmax over those K only; the weights of a row add up to 1.

    In exact arithmetic this is also softmax over all E, its K largest, divided by their sum.
    """

    def check(self, n_experts: int) -> None:
        """It can choose from any."""

    def __call__(
        self,
        logits_RE: Tensor,
        allowed_RE: Tensor | None,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert correction_E is None, "this rule corrects no choice"
        if allowed_RE is not None:
            logits_RE = logits_RE.masked_fill(~allowed_RE, float("-inf"))
        top_RK, expert_ids_RK = logits_RE.topk(top_k, dim=-1)
        return torch.softmax(top_RK, dim=-1), expert_ids_RK


@dataclass(frozen=True, slots=True)
class TopKOfSoftmax:
    """Softmax over all E, its K largest, times `scale`; `is_renormalised`: first divided by their sum.

    `groups`: only experts of a row's best groups are chosen.
    """

    is_renormalised: bool
    scale: float = 1.0
    groups: ExpertGroups | None = None

    def check(self, n_experts: int) -> None:
        _check_groups(self.groups, n_experts)

    def __call__(
        self,
        logits_RE: Tensor,
        allowed_RE: Tensor | None,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        assert correction_E is None, "this rule corrects no choice"
        if allowed_RE is not None:
            logits_RE = logits_RE.masked_fill(~allowed_RE, float("-inf"))
        scores_RE = torch.softmax(logits_RE, dim=-1)
        expert_ids_RK = _choose(scores_RE, allowed_RE, top_k, self.groups)
        weights_RK = scores_RE.gather(-1, expert_ids_RK)
        return _weights(weights_RK, self.scale, is_renormalised=self.is_renormalised), expert_ids_RK


def softmax_rule(*, is_renormalised: bool) -> RouterRule:
    """Softmax over all E, its K largest: as they are, or divided by their sum, as the faster rule does."""
    return SoftmaxOfTopK() if is_renormalised else TopKOfSoftmax(is_renormalised=False)


@dataclass(frozen=True, slots=True)
class TopKOfSigmoid:
    """The sigmoid of each logit; the K experts for which it and their correction are largest together. Their
    weights are the sigmoids alone, times `scale`; `is_renormalised`: first divided by their sum.

    `groups`: only experts of a row's best groups are chosen. Source: DeepSeek-V3 (2024, section 2.1.2).
    """

    is_renormalised: bool = True
    scale: float = 1.0
    groups: ExpertGroups | None = None

    def check(self, n_experts: int) -> None:
        _check_groups(self.groups, n_experts)

    def __call__(
        self,
        logits_RE: Tensor,
        allowed_RE: Tensor | None,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        scores_RE = torch.sigmoid(logits_RE)
        corrected_RE = scores_RE if correction_E is None else scores_RE + correction_E
        expert_ids_RK = _choose(corrected_RE, allowed_RE, top_k, self.groups)
        # Not the corrected score less its correction: a large correction leaves few digits of the score.
        weights_RK = scores_RE.gather(-1, expert_ids_RK)
        return _weights(weights_RK, self.scale, is_renormalised=self.is_renormalised), expert_ids_RK


@dataclass(frozen=True, slots=True)
class CorrectedSoftmax:
    """Softmax over all E; the K experts for which it and their correction are largest together. Their weights
    are of the softmax alone, divided by their sum, or by `norm_min` where the sum is less.

    Source: ERNIE 4.5 (Baidu, 2025).
    """

    norm_min: float

    def check(self, n_experts: int) -> None:
        """It can choose from any."""

    def __call__(
        self,
        logits_RE: Tensor,
        allowed_RE: Tensor | None,
        top_k: int,
        correction_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if allowed_RE is not None:
            logits_RE = logits_RE.masked_fill(~allowed_RE, float("-inf"))
        scores_RE = torch.softmax(logits_RE, dim=-1)
        corrected_RE = scores_RE if correction_E is None else scores_RE + correction_E
        expert_ids_RK = _choose(corrected_RE, allowed_RE, top_k, None)
        weights_RK = scores_RE.gather(-1, expert_ids_RK)
        return weights_RK / weights_RK.sum(-1, keepdim=True).clamp(min=self.norm_min), expert_ids_RK


def _check_groups(groups: ExpertGroups | None, n_experts: int) -> None:
    if groups is not None:
        groups.check(n_experts)


def _choose(scores_RE: Tensor, allowed_RE: Tensor | None, top_k: int, groups: ExpertGroups | None) -> Tensor:
    """expert_ids_RK of the largest scores."""
    if allowed_RE is not None:
        scores_RE = scores_RE.masked_fill(~allowed_RE, float("-inf"))
    if groups is not None:
        scores_RE = groups.keep(scores_RE, top_k)
    return scores_RE.topk(top_k, dim=-1).indices


def _weights(scores_RK: Tensor, scale: float, *, is_renormalised: bool) -> Tensor:
    if is_renormalised:
        # As the authors do, for rows whose scores are all too small for float32.
        scores_RK = scores_RK / (scores_RK.sum(-1, keepdim=True) + 1e-20)
    return scores_RK if scale == 1.0 else scores_RK * scale
