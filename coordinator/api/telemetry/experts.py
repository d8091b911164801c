"""Metrics of the expert workers, from one record per dispatch."""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as CounterMetric

from coordinator.api.telemetry import names
from coordinator.api.telemetry.names import PREFIX
from coordinator.engine.messages.records import StepRecord

M = TypeVar("M")

# Why a worker can be lost.
REASONS = ("late", "died", "raised", "invalid", "corrupt", "oom", "fenced")


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
    def retries(self) -> Mapping[StrEnum, int]: ...
    @property
    def num_hedged(self) -> int: ...


class _ByRank(dict[int, M]):
    """Workers come and go: a new one gets a series of its own."""

    def __init__(self, make: Callable[[int], M], ranks: Sequence[int]) -> None:
        super().__init__({rank: make(rank) for rank in ranks})
        self._make = make

    def __missing__(self, rank: int) -> M:
        made = self[rank] = self._make(rank)
        return made


class ExpertMetrics:
    """Told on the engine's thread, of each dispatch and then of the step that they were part of."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._step_rows: Counter[int] = Counter()
        self._is_open = False

    def open(self, model: str, ranks: Sequence[int]) -> None:
        self._model = model
        self._seconds = self._histogram("expert_dispatch_seconds", "One layer's dispatch and answer.")
        self._combine = self._histogram("expert_combine_seconds", "Combining a layer's answers.")
        self._straggler = self._histogram("expert_straggler_seconds", "Slowest worker less the median.")
        compute = Histogram(
            f"{PREFIX}expert_compute_seconds",
            "A worker's own time for one call.",
            ["model_name", "rank"],
            registry=self._registry,
            buckets=names.SHORT_SECONDS,
        )
        self._compute = _ByRank(lambda rank: compute.labels(model, str(rank)), ranks)
        self._open_counters(model, ranks)
        self._is_open = True

    def _open_counters(self, model: str, ranks: Sequence[int]) -> None:
        tokens = self._counter("expert_tokens", "Token-expert pairs computed.", "rank")
        self._tokens = _ByRank(lambda rank: tokens.labels(model, str(rank)), ranks)
        num_bytes = self._counter("expert_bytes", "Bytes of rows and answers.", "direction")
        self._sent = num_bytes.labels(model, "dispatch")
        self._received = num_bytes.labels(model, "combine")
        self._retries = self._counter("expert_retries", "Calls that were made again.", "reason")
        self._losses = self._counter("expert_worker_losses", "Workers that were lost.", "reason")
        self._restarts = self._counter("expert_worker_restarts", "Workers that came back anew.", "reason")
        for reason in REASONS:
            for counter in (self._retries, self._losses, self._restarts):
                counter.labels(model, reason)
        self._hedges = self._plain_counter("expert_hedges", "Calls that a replica was asked for as well.")
        self._plain_counter("expert_dropped_tokens", "Pairs that were not computed; stays 0.")
        self._rebalances = self._plain_counter("expert_rebalances", "Changes of the placement.")
        self._rebalance_seconds = self._histogram("expert_rebalance_seconds", "One change of the placement.")
        balance = Histogram(
            f"{PREFIX}expert_balancedness",
            "Mean over maximum of pairs per worker and step; 1 is even.",
            ["model_name", "phase"],
            registry=self._registry,
            buckets=names.BALANCEDNESS,
        )
        self._balance = {phase: balance.labels(model, phase) for phase in ("prefill", "decode")}

    def dispatched(self, record: Dispatch) -> None:
        if not self._is_open:
            return
        self._seconds.observe(record.seconds)
        self._combine.observe(record.combine_seconds)
        self._sent.inc(record.bytes_sent)
        self._received.inc(record.bytes_received)
        for rank, rows in record.rows.items():
            self._tokens[rank].inc(rows)
        for rank, seconds in record.compute_seconds.items():
            self._compute[rank].observe(seconds)
        times = list(record.compute_seconds.values())
        if times:
            self._straggler.observe(max(times) - statistics.median(times))
        self._step_rows.update(record.rows)
        for reason, count in record.retries.items():
            self._retries.labels(self._model, reason.value).inc(count)
        if record.num_hedged:
            self._hedges.inc(record.num_hedged)

    def lost(self, rank: int, reason: StrEnum) -> None:
        """Told on the supervisor's thread, as the next two are."""
        if self._is_open:
            self._losses.labels(self._model, reason.value).inc()

    def restarted(self, rank: int, reason: StrEnum) -> None:
        if self._is_open:
            self._restarts.labels(self._model, reason.value).inc()

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        if self._is_open:
            self._rebalances.inc()
            self._rebalance_seconds.observe(seconds)

    def step(self, record: StepRecord) -> None:
        """What was dispatched since the last one was this step's."""
        rows, self._step_rows = self._step_rows, Counter()
        if self._is_open and rows:
            even = rows.total() / len(rows) / max(rows.values())
            self._balance[record.phase].observe(even)

    def _histogram(self, stem: str, text: str) -> Histogram:
        return Histogram(
            f"{PREFIX}{stem}",
            text,
            ["model_name"],
            registry=self._registry,
            buckets=names.SHORT_SECONDS,
        ).labels(self._model)

    def _plain_counter(self, stem: str, text: str) -> CounterMetric:
        return CounterMetric(f"{PREFIX}{stem}", text, ["model_name"], registry=self._registry).labels(
            self._model
        )

    def _counter(self, stem: str, text: str, label: str) -> CounterMetric:
        return CounterMetric(f"{PREFIX}{stem}", text, ["model_name", label], registry=self._registry)
