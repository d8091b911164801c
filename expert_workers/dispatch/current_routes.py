"""CurrentRoutes: which links lead to which experts now, what was published since, and the wait for experts
that no worker holds.

Shapes: C columns of a layer's router.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from expert_workers.dispatch.links import LinkedRoutes, Links
from expert_workers.dispatch.options import PoolOptions
from expert_workers.dispatch.patience import Patience
from expert_workers.dispatch.routes import Address, LayerTable, Routes, tables
from expert_workers.transports.base import Failure, Link
from moe_model.errors import ExpertsLostError, WorldError
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import Catalog, ExpertModule


class Rescuer(Protocol):
    """What looks after the workers. Any thread may call; nothing here waits."""

    def lost(self, address: Address, failure: Failure) -> None:
        """The link to this address has failed."""

    def rescue(self, keys: Sequence[ExpertKey]) -> None:
        """A step waits for these: no worker holds them."""


class CurrentRoutes:
    """Of one pool. `publish`, `await_news`, `give_up`, `missing_experts`: any thread; the rest belongs to the
    thread that dispatches."""

    def __init__(self, catalog: Catalog, links: Links, options: PoolOptions) -> None:
        self._catalog = catalog
        self._links = links
        self._options = options
        self.linked = LinkedRoutes()
        self.tables: list[LayerTable] = tables(catalog, self.linked.routes, options.num_slices)
        self.rescuer: Rescuer | None = None
        # Told, on any thread, that what is in use is no longer all that there is.
        self.on_change: Callable[[], None] = _nothing
        self.patience = Patience(options)
        self._changed = threading.Condition()
        self._next: LinkedRoutes | None = None
        self._over: WorldError | None = None
        self._missing: tuple[object, tuple[ExpertModule, ...]] = (None, ())

    @property
    def has_news(self) -> bool:
        """Whether something was published that is not in use yet."""
        return self._next is not None

    def publish(self, routes: Routes) -> None:
        with self._changed:
            linked = self._links.linked(routes)
            if self._next is not None:
                self._links.retire(self._next.routes, routes, time.monotonic())
            self._next = linked
            self.on_change()
            self._changed.notify_all()

    def await_news(self, timeout: float) -> None:
        """Waits until something is published, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._over is not None, timeout)

    def give_up(self, why: WorldError) -> None:
        """What a step lacks from now on is not waited for, it fails with this; the first counts."""
        with self._changed:
            self._over = self._over or why
            self._changed.notify_all()

    def adopt(self) -> list[Link]:
        """What was published counts from now on. Returns those of its links that have failed meanwhile."""
        with self._changed:
            linked, self._next = self._next, None
        assert linked is not None, "something was published"
        self._links.retire(self.linked.routes, linked.routes, time.monotonic())
        self.linked = linked
        self.tables = tables(self._catalog, linked.routes, self._options.num_slices)
        if self.patience.left <= 0 and all(linked.is_live(key) for key in self._catalog.keys):
            # Requests that waited in vain were told; those that come now have all the time there is.
            self.patience.end()
        return [link for link in linked.links.values() if link.failure is not None]

    def switch(self, catalog: Catalog) -> None:
        """What the routers' columns stand for from now on."""
        self._catalog = catalog
        self.tables = tables(catalog, self.linked.routes, self._options.num_slices)
        self.on_change()

    def drop(self, link: Link) -> Address | None:
        """Does without a link from now on; None where it is no longer in use."""
        if self.linked.links.get(link.rank) is not link:
            return None
        address = self.linked.routes.addresses[link.rank]
        self.linked = self.linked.without(link.rank)
        self.on_change()
        return address

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        """The modules that no worker holds whose link works."""
        linked, catalog = looked_at = (self._next or self.linked, self._catalog)
        if looked_at != self._missing[0]:
            self._missing = looked_at, tuple(m for m in catalog.modules if not linked.is_live(m.key))
        return self._missing[1]

    def await_holders(self, table: LayerTable, columns: Sequence[int]) -> None:
        """For columns of a table that no worker holds: returns when something may have changed. Raises
        ExpertsLostError where that may take longer than a step waits."""
        if self._over is not None:
            raise self._over.with_traceback(None)
        if self.rescuer is None or not self._options.on_loss.waits:
            raise _lost_error(table, columns)
        self.patience.begin()
        self.rescuer.rescue([(table.layer, table.slots_C[column]) for column in columns])
        if (left := self.patience.left_inside) <= 0:
            raise _lost_error(table, columns)
        self.await_news(left)


def _lost_error(table: LayerTable, columns: Sequence[int]) -> ExpertsLostError:
    experts = [table.experts_C[column] for column in columns]
    shown = ", ".join(map(str, experts[:8])) + (", ..." if len(experts) > 8 else "")
    ranks = sorted({rank for column in columns for rank in table.ranks_C[column]})
    lost = f" (lost: worker {', '.join(map(str, ranks))})" if ranks else ""
    return ExpertsLostError(f"layer {table.layer}: no live worker holds expert {shown}{lost}", tuple(ranks))


def _nothing() -> None:
    pass
