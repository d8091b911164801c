"""What a pool counts. One thread records, any thread takes a snapshot."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from expert_workers.transports.base import FailureReason
from moe_model.layers.dispatch import ExpertKey


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """`rows` are (token, expert) pairs answered; `compute_seconds` is the worker's own clock."""

    calls: int = 0
    rows: int = 0
    compute_seconds: float = 0.0
    failures: Mapping[FailureReason, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """`dispatch_seconds` is the wall time of all dispatches, one per layer and step; `num_hedged` are the
    calls that were sent to a replica as well; `loads` are rows by module."""

    dispatches: int
    dispatch_seconds: float
    workers: Mapping[int, WorkerStats]
    num_hedged: int
    loads: Mapping[ExpertKey, int]


@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """One layer of one step. Times are `time.time_ns()`, for spans; seconds are by the monotonic clock.

    `rows` are (token, expert) pairs per rank, `compute_seconds` the workers' own clocks; bytes are those of
    rows and replies; `retries` are the calls that had to be made again, by why, `num_hedged` those that were
    sent to a replica as well.
    """

    layer: int
    start_ns: int
    end_ns: int
    seconds: float
    combine_seconds: float
    bytes_sent: int
    bytes_received: int
    rows: Mapping[int, int]
    compute_seconds: Mapping[int, float]
    retries: Mapping[FailureReason, int]
    num_hedged: int = 0


class DispatchObserver(Protocol):
    """Called on the thread that dispatches; must be quick and must not raise."""

    def dispatched(self, records: Sequence[DispatchRecord]) -> None:
        """Of the dispatches of one step, in their order."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted of dispatches elsewhere: (rank, calls, rows, compute seconds) of workers, and (layer,
    slot, rows) of modules."""

    num_dispatches: int
    seconds: float
    workers: Sequence[tuple[int, int, int, float]]
    loads: Sequence[tuple[int, int, int]]


class Exchange:
    """What one dispatch sums up, call by call."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.calls: dict[int, int] = {}
        self.rows: dict[int, int] = {}
        self.compute_seconds: dict[int, float] = {}
        self.retries: dict[FailureReason, int] = {}
        self.num_hedged = 0

    def replied(self, rank: int, rows: int, compute_seconds: float, sent: int, received: int) -> None:
        self.calls[rank] = self.calls.get(rank, 0) + 1
        self.rows[rank] = self.rows.get(rank, 0) + rows
        self.compute_seconds[rank] = self.compute_seconds.get(rank, 0.0) + compute_seconds
        self.bytes_sent += sent
        self.bytes_received += received

    def failed(self, reason: FailureReason) -> None:
        self.retries[reason] = self.retries.get(reason, 0) + 1

    def record(self, layer: int, start_ns: int, seconds: float, combine_seconds: float) -> DispatchRecord:
        return DispatchRecord(
            layer=layer,
            start_ns=start_ns,
            end_ns=start_ns + int(seconds * 1e9),
            seconds=seconds,
            combine_seconds=combine_seconds,
            bytes_sent=self.bytes_sent,
            bytes_received=self.bytes_received,
            rows=self.rows,
            compute_seconds=self.compute_seconds,
            retries=self.retries,
            num_hedged=self.num_hedged,
        )


class StatsRecorder:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dispatches = 0
        self._dispatch_seconds = 0.0
        self._num_hedged = 0
        self._workers: dict[int, _Counts] = {}
        self._loads: dict[ExpertKey, int] = {}

    def snapshot(self) -> PoolStats:
        with self._lock:
            workers = {
                rank: WorkerStats(c.calls, c.rows, c.seconds, dict(c.failures))
                for rank, c in self._workers.items()
            }
            loads = dict(self._loads)
            return PoolStats(self._dispatches, self._dispatch_seconds, workers, self._num_hedged, loads)

    def dispatched(
        self,
        layer: int,
        slots_C: Sequence[int],
        counts_C: Sequence[int],
        seconds: float,
        exchange: Exchange,
    ) -> None:
        """So many rows of a layer have gone to each of its modules, and come back."""
        with self._lock:
            self._dispatches += 1
            self._dispatch_seconds += seconds
            loads = self._loads
            for slot, num_rows in zip(slots_C, counts_C, strict=True):
                if num_rows:
                    key = (layer, slot)
                    loads[key] = loads.get(key, 0) + num_rows
            for rank, num_calls in exchange.calls.items():
                counts = self._of(rank)
                counts.calls += num_calls
                counts.rows += exchange.rows[rank]
                counts.seconds += exchange.compute_seconds[rank]

    def add(self, counted: Counts) -> None:
        with self._lock:
            self._dispatches += counted.num_dispatches
            self._dispatch_seconds += counted.seconds
            for rank, num_calls, rows, seconds in counted.workers:
                counts = self._of(rank)
                counts.calls += num_calls
                counts.rows += rows
                counts.seconds += seconds
            for layer, slot, rows in counted.loads:
                self._loads[layer, slot] = self._loads.get((layer, slot), 0) + rows

    def hedged(self, num_calls: int) -> None:
        with self._lock:
            self._num_hedged += num_calls

    def failed(self, rank: int, reason: FailureReason) -> None:
        with self._lock:
            counts = self._of(rank)
            counts.failures[reason] = counts.failures.get(reason, 0) + 1

    def _of(self, rank: int) -> "_Counts":
        counts = self._workers.get(rank)
        if counts is None:
            counts = self._workers[rank] = _Counts()
        return counts


@dataclass(slots=True)
class _Counts:
    calls: int = 0
    rows: int = 0
    seconds: float = 0.0
    failures: dict[FailureReason, int] = field(default_factory=dict)
