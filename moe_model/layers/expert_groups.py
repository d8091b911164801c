"""Groups of experts, of which a row chooses some before it chooses experts.

Shapes: R rows, E experts, G groups, S experts of a group.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from moe_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ExpertGroups:
    """Experts lie in `num_groups` groups of `size`, by number; a row chooses among those of its `num_kept`
    best groups. A group is as good as its `num_counted` best experts together.

    Sources: DeepSeek-V2 (2024, section 2.2.2; one counts); DeepSeek-V3 (2024, section 2.1.2; two do).
    """

    num_groups: int
    num_kept: int
    size: int
    num_counted: int

    @classmethod
    def of(cls, n_experts: int, num_groups: int, num_kept: int, top_k: int, num_counted: int) -> Self | None:
        """None where all groups are kept. Raises ConfigError by the names that published configs have."""
        size = n_experts // num_groups
        is_free = num_kept == num_groups
        if n_experts % num_groups or (size < num_counted and not is_free):
            raise ConfigError(f"n_group: {n_experts} experts cannot be in {num_groups} groups")
        if num_kept > num_groups:
            raise ConfigError(f"topk_group: {num_kept} is more than n_group {num_groups}")
        if top_k > num_kept * size:
            raise ConfigError(f"topk_group: {num_kept} groups of {size} experts have not {top_k}")
        return None if is_free else cls(num_groups, num_kept, size, num_counted)

    def check(self, n_experts: int) -> None:
        """Raises ConfigError for another number of experts: a group is a range of numbers."""
        if n_experts != self.num_groups * self.size:
            raise ConfigError(
                f"{n_experts} experts cannot be in {self.num_groups} groups of {self.size}, by number: "
                "experts of this model can be replaced, not added or removed"
            )

    def keep(self, scores_RE: Tensor, top_k: int) -> Tensor:
        """The scores with -inf for the experts of groups that a row does not keep. -inf already is what must
        not be chosen; where the best groups have fewer than `top_k` others, the next groups are kept too."""
        groups_RGS = scores_RE.view(-1, self.num_groups, self.size)
        counted_RGS = groups_RGS.topk(self.num_counted, dim=-1).values
        is_empty_RG1 = counted_RGS[..., :1].isneginf()
        counted_RGS = counted_RGS.masked_fill(counted_RGS.isneginf() & ~is_empty_RG1, 0.0)
        order_RG = counted_RGS.sum(-1).argsort(dim=-1, descending=True, stable=True)
        num_there_RG = (~groups_RGS.isneginf()).sum(-1).gather(-1, order_RG)
        num_before_RG = num_there_RG.cumsum(-1) - num_there_RG
        is_best_G = torch.arange(self.num_groups, device=scores_RE.device) < self.num_kept
        is_kept_RG = torch.zeros_like(order_RG, dtype=torch.bool).scatter_(
            -1, order_RG, is_best_G | (num_before_RG < top_k)
        )
        return groups_RGS.masked_fill(~is_kept_RG.unsqueeze(-1), float("-inf")).flatten(-2)
