"""Counts of an engine's steps and of what its workers do, beside the step: plain additions."""

from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from coordinator.engine.messages.metrics import MetricsSnapshot
from coordinator.engine.messages.records import StepRecord
from coordinator.metrics import of_engine
from coordinator.metrics.store import Counter, Histogram, Store

# Why a worker can be lost.
REASONS = ("late", "died", "raised", "invalid", "corrupt", "oom", "fenced")
PHASES = ("prefill", "decode")


class Dispatch(Protocol):
    """What is read of a dispatch; a pool's DispatchRecord has it."""

    @property
    def seconds(self) -> float: ...
    @property
    def combine_seconds(self) -> float: ...
    @property
    def bytes_sent(self) -> int: ...
    @property
    def bytes_received(self) -> int: ...
    @property
    def rows(self) -> Mapping[int, int]: ...
    @property
    def compute_seconds(self) -> Mapping[int, float]: ...
    @property
    def retries(self) -> Mapping[Any, int]: ...
    @property
    def num_hedged(self) -> int: ...


class EngineCounts:
    """An EngineObserver and an ExpertObserver. Counts nothing before `open`: an engine warms up first."""

    def __init__(self) -> None:
        self._store = store = Store()
        self._is_open = False
        self._step_rows: Tally[int] = Tally()
        self._tokens = store.histogram(of_engine.ITERATION_TOKENS)
        self._steps = {phase: store.histogram(of_engine.STEP_SECONDS, phase) for phase in PHASES}
        self._drafted = store.counter(of_engine.DRAFTED)
        self._accepted = store.counter(of_engine.ACCEPTED)
        self._seconds = store.histogram(of_engine.DISPATCH_SECONDS)
        self._combine = store.histogram(of_engine.COMBINE_SECONDS)
        self._straggler = store.histogram(of_engine.STRAGGLER_SECONDS)
        self._sent = store.counter(of_engine.BYTES, "dispatch")
        self._received = store.counter(of_engine.BYTES, "combine")
        self._hedges = store.counter(of_engine.HEDGES)
        self._rebalances = store.counter(of_engine.REBALANCES)
        self._rebalance_seconds = store.histogram(of_engine.REBALANCE_SECONDS)
        self._balance = {phase: store.histogram(of_engine.BALANCEDNESS, phase) for phase in PHASES}
        self._workers: dict[int, tuple[Counter, Histogram]] = {}
        store.counter(of_engine.DROPPED)
        for reason in REASONS:
            for family in (of_engine.RETRIES, of_engine.LOSSES, of_engine.RESTARTS):
                store.counter(family, reason)

    def open(self, ranks: Sequence[int]) -> None:
        """Counts from now on; those of the workers that there are have series at once."""
        for rank in ranks:
            self._worker(rank)
        self._is_open = True

    def snapshot(self) -> MetricsSnapshot:
        """On any thread."""
        return MetricsSnapshot(tuple(self._store.series()))

    def step(self, record: StepRecord) -> None:
        """On the engine's thread. What was dispatched since the last one was this step's."""
        rows, self._step_rows = self._step_rows, Tally()
        if not self._is_open:
            return
        phase = record.phase
        self._steps[phase].observe(record.seconds)
        self._tokens.observe(record.num_tokens)
        if record.num_draft_tokens:
            self._drafted.add(record.num_draft_tokens)
            self._accepted.add(record.num_accepted_tokens)
        if rows:
            self._balance[phase].observe(rows.total() / len(rows) / max(rows.values()))

    def dispatched(self, records: Sequence[Dispatch]) -> None:
        """On the engine's thread."""
        if self._is_open:
            for record in records:
                self._count(record)

    def recorded(self, num_tokens: int, is_written: bool) -> None:
        """Of the routing, where it is recorded: on the recorder's thread what was written, on the engine's
        what comes after its end."""
        self._store.counter(of_engine.ROUTED, "recorded" if is_written else "missed").add(num_tokens)

    def _count(self, record: Dispatch) -> None:
        self._seconds.observe(record.seconds)
        self._combine.observe(record.combine_seconds)
        self._sent.add(record.bytes_sent)
        self._received.add(record.bytes_received)
        step_rows, times = self._step_rows, record.compute_seconds
        for rank, rows in record.rows.items():
            pairs, compute = self._worker(rank)
            pairs.add(rows)
            step_rows[rank] += rows
            if rank in times:
                compute.observe(times[rank])
        if times:
            self._straggler.observe(max(times.values()) - _median(times.values()))
        for reason, count in record.retries.items():
            self._store.counter(of_engine.RETRIES, reason.value).add(count)
        if record.num_hedged:
            self._hedges.add(record.num_hedged)

    def lost(self, rank: int, reason: StrEnum) -> None:
        """On the supervisor's thread, as the next two are."""
        if self._is_open:
            self._store.counter(of_engine.LOSSES, reason.value).add()

    def restarted(self, rank: int, reason: StrEnum) -> None:
        if self._is_open:
            self._store.counter(of_engine.RESTARTS, reason.value).add()

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        if self._is_open:
            self._rebalances.add()
            self._rebalance_seconds.observe(seconds)

    def _worker(self, rank: int) -> tuple[Counter, Histogram]:
        """Workers come and go: a new one gets series of its own."""
        found = self._workers.get(rank)
        if found is None:
            pairs = self._store.counter(of_engine.PAIRS, str(rank))
            found = pairs, self._store.histogram(of_engine.COMPUTE_SECONDS, str(rank))
            self._workers[rank] = found
        return found


def _median(values: Iterable[float]) -> float:
    """As `statistics.median`, in a tenth of its time."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
