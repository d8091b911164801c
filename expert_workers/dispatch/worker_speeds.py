"""WorkerSpeeds: how quick the workers of a pool are, which are given rows, and how long is too long.

A worker that owes an answer, since a replica gave it in the meantime, gets no rows that another could take;
neither does one that is much slower than the rest.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from expert_workers.dispatch.dispatch import Sent
from expert_workers.dispatch.latency import Latency
from expert_workers.dispatch.options import PoolOptions
from expert_workers.transports.base import Link
from expert_workers.wire import ExpertReply

# A call may take so many times longer than usual before its worker is given up, and so many before a replica
# is asked as well.
_DEADLINE_FACTOR = 50.0
_HEDGE_FACTOR = 4.0
# Seconds between two estimates of the workers' speeds.
_INTERVAL = 0.05
# So many times slower than the quickest, a worker gets no rows that another could take.
TOO_SLOW = 8.0


class WorkerSpeeds:
    """Belongs to the pool's thread. `clock`: what tells the time, a simulation has its own."""

    def __init__(self, options: PoolOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options = options
        self._clock = clock
        self._planned = options.first_costs
        self._latency = Latency(self._planned)
        self._owed: list[Sent] = []
        self._behind: frozenset[int] = frozenset()
        self._costs: dict[int, float] = {}
        self._timeouts: dict[int, float] = {}
        self._until = 0.0

    @property
    def is_owed(self) -> bool:
        return bool(self._owed)

    @property
    def last_costs(self) -> Mapping[int, float]:
        """As `costs` said last. Any thread may ask."""
        return self._costs

    def costs(self, links: Mapping[int, Link]) -> dict[int, float]:
        """What a row costs with each worker that may be given any; 1 with the quickest, or as planned."""
        now = self._clock()
        if now >= self._until:
            alive = [r for r, link in links.items() if link.failure is None and r not in self._behind]
            costs = self._latency.costs(alive, now)
            self._costs = {r: c * self._planned.get(r, 1.0) for r, c in costs.items() if c < TOO_SLOW}
            self._until = now + _INTERVAL
            self._timeouts.clear()
        return self._costs

    @property
    def until(self) -> float:
        """How long the last costs, and the times, may be used; by time.monotonic()."""
        return self._until

    def refresh(self) -> None:
        """The links have changed."""
        self._until = 0.0

    def size(self, num_pairs: int, num_columns: int) -> int:
        """Of a call, by which its times are kept: its rows, and with a plan those that its columns cost
        beside. By rows alone a worker that has many columns of few rows would seem to be slow, and one that
        has a single column of many rows to be quick."""
        return num_pairs + int(self._options.fixed_rows * num_columns)

    def size_of(self, sent: Sent) -> int:
        return self.size(sent.num_pairs, sent.num_columns)

    def timeout(self, size: int) -> float:
        """How long a call of this size may take."""
        timeout = self._timeouts.get(size)
        if timeout is None:
            timeout = self._timeouts[size] = self._timeout(self._latency.usual(size))
        return timeout

    def _timeout(self, usual: float | None) -> float:
        options = self._options
        if usual is None:
            return options.call_timeout
        return min(options.call_timeout, max(options.least_timeout, _DEADLINE_FACTOR * usual))

    def hedge_after(self, size: int) -> float | None:
        """When to ask a replica as well; None: it is not known yet what is usual."""
        usual = self._latency.usual(size)
        return None if usual is None else max(self._options.hedge_floor, _HEDGE_FACTOR * usual)

    def replied(self, sent: Sent) -> None:
        self.took(sent.link.rank, self.size_of(sent), sent.pending.arrived - sent.started)

    def took(self, rank: int, size: int, seconds: float) -> None:
        """A worker's call of this size took so long."""
        self._latency.add(rank, size, seconds, self._clock())

    def forget(self, rank: int) -> None:
        """Its process is another one from now on."""
        self._latency.forget(rank)
        self._until = 0.0

    def owe(self, sent: Sequence[Sent]) -> None:
        """These were answered by others first."""
        self._owed += sent
        self._note_behind()

    def settle_owed(self) -> list[Sent]:
        """Takes in what has come of what is owed; returns what failed, or is late by now."""
        now = self._clock()
        for link in {sent.link.rank: sent.link for sent in self._owed}.values():
            link.look()
        left, failed = [], []
        for sent in self._owed:
            outcome = sent.pending.outcome
            if isinstance(outcome, ExpertReply):
                self.replied(sent)
            elif outcome is None and now < sent.deadline:
                left.append(sent)
            else:
                failed.append(sent)
        if len(left) != len(self._owed):
            self._owed = left
            self._note_behind()
        return failed

    def _note_behind(self) -> None:
        self._behind = frozenset(sent.link.rank for sent in self._owed)
        self._until = 0.0
