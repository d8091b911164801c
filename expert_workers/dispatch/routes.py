"""Routes: which links lead to which modules. Made by the supervisor, read by the pool.

Shapes: C columns of a layer's router.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from expert_workers.transports.base import Link
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """Immutable. `holders[key]` are ranks of `links` that hold a module; a higher `version` is newer."""

    version: int = 0
    links: Mapping[int, Link] = field(default_factory=dict)
    holders: Mapping[ExpertKey, tuple[int, ...]] = field(default_factory=dict)

    def is_live(self, key: ExpertKey) -> bool:
        """Whether somebody holds it whose link works."""
        return any(r in self.links and self.links[r].failure is None for r in self.holders.get(key, ()))


@dataclass(frozen=True, slots=True, eq=False)
class LayerTable:
    """One layer's columns: `slots_C` on the wire, and the ranks that hold each; `has_choice`: some by two."""

    slots_C: tuple[int, ...]
    ranks_C: tuple[tuple[int, ...], ...]
    has_choice: bool
    # Whether each column's slot is its own number, so that nothing has to be translated.
    is_plain: bool


def tables(catalog: Catalog, routes: Routes) -> list[LayerTable]:
    """All layers' tables."""
    return [
        _table(tuple(module.slot for module in layer), number, routes)
        for number, layer in enumerate(catalog.columns)
    ]


def _table(slots_C: tuple[int, ...], layer: int, routes: Routes) -> LayerTable:
    ranks_C = tuple(routes.holders.get((layer, slot), ()) for slot in slots_C)
    has_choice = any(len(ranks) > 1 for ranks in ranks_C)
    return LayerTable(slots_C, ranks_C, has_choice, slots_C == tuple(range(len(slots_C))))


class Retired:
    """Links that newer routes no longer name. Each is closed when nothing can be on its way through it."""

    def __init__(self, seconds: float) -> None:
        """That is, so long after nothing was sent through it any more."""
        self._seconds = seconds
        self._lock = threading.Lock()
        self._links: list[tuple[float, Link]] = []

    def add(self, old: Routes, new: Routes, now: float) -> None:
        """Any thread. Those that only `old` names."""
        kept = set(map(id, new.links.values()))
        gone = [(now + self._seconds, link) for link in old.links.values() if id(link) not in kept]
        with self._lock:
            self._links += gone

    def close(self, now: float) -> None:
        """Those whose time has come. Only the thread that the links belong to."""
        if not self._links:
            return
        with self._lock:
            due = [link for when, link in self._links if when <= now]
            self._links = [each for each in self._links if each[0] > now]
        for link in due:
            link.close()
