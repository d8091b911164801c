"""Router rules: from a row's logits to its experts and their weights. A family chooses one.

A new rule is a class here. Torch runs it as it is; native kernels run it over their own logits, unless they
have code for it. Shapes: R rows, E experts, K experts per token.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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
