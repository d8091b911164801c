"""Planned: a placement that was made before the start, and what it was made for. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from expert_workers.placement.placement import Placement
from moe_model.layers.dispatch import ExpertKey


@dataclass(frozen=True, slots=True)
class Planned:
    """`loads` of modules and `costs` of workers' rows, by rank, are relative."""

    placement: Placement
    loads: Mapping[ExpertKey, float]
    costs: Mapping[int, float]

    @property
    def redundant(self) -> int:
        """How many copies a layer has at most beyond as many of each module as the one with the fewest."""
        fewest = min(map(len, self.placement.holders.values()), default=0)
        more: dict[int, int] = {}
        for (layer, _), ranks in self.placement.holders.items():
            more[layer] = more.get(layer, 0) + len(ranks) - fewest
        return max(more.values(), default=0)
