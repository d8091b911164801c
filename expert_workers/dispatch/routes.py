"""Routes: which workers hold which modules, and where each is reached. Plain data: made by the supervisor,
read by every client of the workers, wherever that is.

Shapes: C columns of a layer's router.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Self

from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog, ExpertModule

# The rank of the client's own process, where experts are loaded as a last resort. Workers count from 0.
HERE = 1 << 20


@dataclass(frozen=True, slots=True)
class Address:
    """Where a worker is reached from one time it is brought up to the next. `incarnation` counts these: a
    worker that was lost has another address afterwards, even if it is the same process."""

    rank: int
    incarnation: int
    endpoint: Hashable

    @classmethod
    def here(cls, incarnation: int, endpoint: Hashable) -> Self:
        """In the client's own process."""
        return cls(HERE, incarnation, endpoint)

    @property
    def is_here(self) -> bool:
        """Whether it is in the client's own process, and reached in that way."""
        return self.rank == HERE


@dataclass(frozen=True, slots=True)
class Routes:
    """`addresses` are by rank; `holders[key]` are ranks that hold a module. A higher `version` is newer; an
    address that newer routes no longer name never comes back."""

    version: int = 0
    addresses: Mapping[int, Address] = field(default_factory=dict)
    holders: Mapping[ExpertKey, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """One layer's columns, or those of one slice of its experts: `slots_C` on the wire, and the ranks that
    hold each; `has_choice`: some by two."""

    layer: int
    experts_C: tuple[int, ...]
    slots_C: tuple[int, ...]
    ranks_C: tuple[tuple[int, ...], ...]
    has_choice: bool
    # Whether each column's slot is its own number, so that nothing has to be translated.
    is_plain: bool


def tables(catalog: Catalog, routes: Routes, num_slices: int = 1) -> list[LayerTable]:
    """All layers' tables; of experts in slices, a layer's are those of its slices, one after the other."""
    return [
        _table(modules[len(modules) // num_slices * index :][: len(modules) // num_slices], layer, routes)
        for layer, modules in enumerate(catalog.columns)
        for index in range(num_slices)
    ]


def _table(modules: tuple[ExpertModule, ...], layer: int, routes: Routes) -> LayerTable:
    slots_C = tuple(module.slot for module in modules)
    experts_C = tuple(module.expert for module in modules)
    ranks_C = tuple(routes.holders.get((layer, slot), ()) for slot in slots_C)
    has_choice = any(len(ranks) > 1 for ranks in ranks_C)
    is_plain = slots_C == tuple(range(len(slots_C)))
    return LayerTable(layer, experts_C, slots_C, ranks_C, has_choice, is_plain)
