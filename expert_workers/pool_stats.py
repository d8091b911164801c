"""What a pool counts. One thread records, any thread takes a snapshot."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from expert_workers.transport import FailureReason


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """`rows` are (token, expert) pairs answered; `compute_seconds` is the worker's own clock."""

    calls: int = 0
    rows: int = 0
    compute_seconds: float = 0.0
    failures: Mapping[FailureReason, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolStats:
    """`dispatch_seconds` is the wall time of all dispatches, one per layer and step."""

    dispatches: int
    dispatch_seconds: float
    workers: Mapping[int, WorkerStats]


@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """One layer of one step. Times are `time.time_ns()`, for spans; seconds are by the monotonic clock.

    `rows` are (token, expert) pairs per rank, `compute_seconds` the workers' own clocks; bytes are those of
    rows and replies; `retries` are the calls that had to be made again, by why.
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


class PoolObserver(Protocol):
    """Called on the thread that dispatches; must be quick and must not raise."""

    def dispatched(self, record: DispatchRecord) -> None: ...

    def restarted(self, rank: int, reason: FailureReason) -> None:
        """A worker that was lost is back as another process; `reason` is why it was lost."""


class PoolObservers:
    """Tells each in turn."""

    def __init__(self, observers: Sequence[PoolObserver]) -> None:
        self._observers = tuple(observers)

    def dispatched(self, record: DispatchRecord) -> None:
        for observer in self._observers:
            observer.dispatched(record)

    def restarted(self, rank: int, reason: FailureReason) -> None:
        for observer in self._observers:
            observer.restarted(rank, reason)


class Exchange:
    """What one dispatch sums up, call by call."""

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.rows: dict[int, int] = {}
        self.compute_seconds: dict[int, float] = {}
        self.retries: dict[FailureReason, int] = {}

    def replied(self, rank: int, rows: int, compute_seconds: float, sent: int, received: int) -> None:
        self.rows[rank] = self.rows.get(rank, 0) + rows
        self.compute_seconds[rank] = self.compute_seconds.get(rank, 0.0) + compute_seconds
        self.bytes_sent += sent
        self.bytes_received += received

    def failed(self, reason: FailureReason) -> None:
        self.retries[reason] = self.retries.get(reason, 0) + 1


class StatsRecorder:
    def __init__(self, num_workers: int) -> None:
        self._lock = threading.Lock()
        self._dispatches = 0
        self._dispatch_seconds = 0.0
        self._calls = [0] * num_workers
        self._rows = [0] * num_workers
        self._seconds = [0.0] * num_workers
        self._failures: list[dict[FailureReason, int]] = [{} for _ in range(num_workers)]

    def snapshot(self) -> PoolStats:
        with self._lock:
            counts = zip(self._calls, self._rows, self._seconds, self._failures, strict=True)
            workers = {
                rank: WorkerStats(calls, rows, seconds, dict(failures))
                for rank, (calls, rows, seconds, failures) in enumerate(counts)
            }
            return PoolStats(self._dispatches, self._dispatch_seconds, workers)

    def dispatched(self, seconds: float) -> None:
        with self._lock:
            self._dispatches += 1
            self._dispatch_seconds += seconds

    def replied(self, rank: int, rows: int, compute_seconds: float) -> None:
        with self._lock:
            self._calls[rank] += 1
            self._rows[rank] += rows
            self._seconds[rank] += compute_seconds

    def failed(self, rank: int, reason: FailureReason) -> None:
        with self._lock:
            self._calls[rank] += 1
            self._failures[rank][reason] = self._failures[rank].get(reason, 0) + 1
