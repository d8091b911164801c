"""Links: a client's ways to the workers that routes name. Opened before the routes are used, so that no step
waits for one; kept as long as routes name them; closed when nothing can be on its way through them.
"""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from expert_workers.dispatch.routes import Address, Routes
from expert_workers.transports.base import AnyTransport, Failure, FailureReason, Link, WorkerFailureError
from moe_model.layers.dispatch import ExpertKey


@dataclass(frozen=True, slots=True, eq=False)
class LinkedRoutes:
    """Routes with the links that there are to their addresses, by rank."""

    routes: Routes = field(default_factory=Routes)
    links: Mapping[int, Link] = field(default_factory=dict)

    def is_live(self, key: ExpertKey) -> bool:
        """Whether a worker holds the module whose link works."""
        return any(
            r in self.links and self.links[r].failure is None for r in self.routes.holders.get(key, ())
        )

    def without(self, rank: int) -> "LinkedRoutes":
        """The same routes without the link to one worker."""
        return LinkedRoutes(self.routes, {r: link for r, link in self.links.items() if r != rank})


class Links:
    """Of one client. A link belongs to the thread that opens it, and from the moment it is in LinkedRoutes to
    the thread that dispatches."""

    def __init__(self, transport: AnyTransport, here: AnyTransport, seconds: float) -> None:
        """`here` is for addresses in this process. Nothing can be on its way through a link so many seconds
        after routes named its address."""
        self._transport = transport
        self._here = here
        self._seconds = seconds
        self._lock = threading.Lock()
        self._is_closed = False
        # Opened, and not yet named by any routes; named; no longer named, and when each is to be closed.
        self._opened: dict[Address, Link] = {}
        self._named: dict[Address, Link] = {}
        self._retired: list[tuple[float, Link]] = []

    def open(self, address: Address, timeout: float) -> None:
        """Returns when there is a link to the address. Blocks for at most `timeout` seconds; any thread.

        Raises WorkerFailureError: it cannot be reached, or nothing is dispatched any more.
        """
        transport = self._here if address.is_here else self._transport
        link = transport.connect(address.rank, address.endpoint, timeout)
        with self._lock:
            is_closed = self._is_closed
            if not is_closed:
                self._opened[address] = link
        if is_closed:
            link.close()
            message = f"worker {address.rank}: is not needed any more"
            raise WorkerFailureError(Failure(FailureReason.DIED, message))

    def forget(self, address: Address) -> None:
        """No routes will name the address; where they have, its link stays until they do no longer. Any
        thread."""
        with self._lock:
            link = self._opened.pop(address, None)
        if link is not None:
            link.close()

    def linked(self, routes: Routes) -> LinkedRoutes:
        """The routes with the links that are open. Any thread."""
        with self._lock:
            for address in routes.addresses.values():
                if address in self._opened:
                    self._named[address] = self._opened.pop(address)
            links = {rank: self._named[a] for rank, a in routes.addresses.items() if a in self._named}
            # Routes never go back to an address from before: the worker was brought up again since.
            passed = [a for a in self._opened if _is_before(a, routes.addresses.get(a.rank))]
            unused = [self._opened.pop(address) for address in passed]
        for link in unused:
            link.close()
        return LinkedRoutes(routes, links)

    def retire(self, old: Routes, new: Routes, now: float) -> None:
        """Links that only `old` names are closed when their time has come. Any thread."""
        kept = set(new.addresses.values())
        with self._lock:
            for address in old.addresses.values():
                if address not in kept and address in self._named:
                    self._retired.append((now + self._seconds, self._named.pop(address)))

    def close_retired(self, now: float = math.inf) -> None:
        """Those whose time has come. Only the thread that dispatches."""
        if not self._retired:
            return
        with self._lock:
            due = [link for when, link in self._retired if when <= now]
            self._retired = [each for each in self._retired if each[0] > now]
        for link in due:
            link.close()

    def close(self) -> None:
        """All of them, and those that are opened from now on. Idempotent; only the thread that dispatches."""
        self.close_retired()
        with self._lock:
            self._is_closed = True
            links = [*self._opened.values(), *self._named.values()]
            self._opened.clear()
            self._named.clear()
        for link in links:
            link.close()


def _is_before(address: Address, named: Address | None) -> bool:
    return named is not None and address.incarnation < named.incarnation
