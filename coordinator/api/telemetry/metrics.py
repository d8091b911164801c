"""Metrics: what the fronts and the engine count, and how things are now, read when /metrics is asked.

Labels have few values and never come from a caller.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from coordinator.api.telemetry import fronts
from coordinator.api.telemetry.exposition import metrics_of, rendered
from coordinator.api.telemetry.fronts import FrontMetrics
from coordinator.api.telemetry.names import PREFIX
from coordinator.api.telemetry.readiness import ReadinessMetrics
from coordinator.api.telemetry.requests import RequestMetrics
from coordinator.engine.messages.metrics import MetricsSnapshot
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from coordinator.metrics import of_engine
from coordinator.metrics.ledger import Ledger
from coordinator.metrics.store import summed
from expert_workers.status import WorkerState

# A kind of certificate: between machines.
DATA = "data"


@dataclass(frozen=True, slots=True)
class MetricSources:
    """What is read when metrics are asked for. `counts` are the engine's, which may be another process;
    `certificates` says when each kind of certificate in use ends, in seconds since 1970; `replicas` are the
    holders of each expert that were asked for, 0 where there are no workers."""

    stats: Callable[[], EngineStats]
    model: Callable[[], ModelStatus]
    workers: Callable[[], WorkersStatus]
    block_size: int
    counts: Callable[[], Awaitable[MetricsSnapshot]]
    certificates: Callable[[], Mapping[str, float]] = dict
    replicas: int = 0


class Metrics:
    """All metrics of one server, whichever of its fronts is asked: `ledger` has the counts of all."""

    def __init__(self, *, vllm_names: bool = False, ledger: Ledger | None = None) -> None:
        self._ledger = ledger or Ledger()
        self._vllm_names = vllm_names
        self._model = ""
        self._sources: MetricSources | None = None
        self._counts = MetricsSnapshot()
        self.requests = RequestMetrics(self._ledger.store)
        self.fronts = FrontMetrics(self._ledger.store)
        self.readiness = ReadinessMetrics(self._ledger)

    def open(self, model: str, max_context: int, sources: MetricSources) -> None:
        """The server is up."""
        self._model = model
        self._sources = sources
        self.requests.open(max_context)

    async def answer(self, accept: str = "") -> tuple[bytes, str]:
        """As `render`, with what the engine has counted by now."""
        if self._sources is not None:
            self._counts = await self._sources.counts()
        return self.render(accept)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text, and its content type."""
        return rendered(self._collect(), accept, vllm_names=self._vllm_names)

    def _collect(self) -> Iterator[Metric]:
        counted = summed(self._ledger.series())
        yield from metrics_of((*self.requests.families, *fronts.FAMILIES), counted, self._model)
        if self._sources is None:
            return
        yield from metrics_of(of_engine.FAMILIES, summed(self._counts.series), self._model)
        yield from self._read(self._sources)

    def _read(self, sources: MetricSources) -> Iterator[Metric]:
        stats, label = sources.stats(), [self._model]
        yield _gauge("num_requests_running", "Sequences being generated.", label, stats.num_running)
        yield _gauge("num_requests_waiting", "Sequences waiting.", label, stats.num_waiting)
        yield _gauge("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", label, stats.kv_usage)
        info = GaugeMetricFamily(
            f"{PREFIX}cache_config_info",
            "Sizes of the KV cache.",
            labels=["model_name", "block_size", "num_blocks"],
        )
        info.add_metric([self._model, str(sources.block_size), str(stats.num_blocks)], 1)
        yield info
        yield _counter("prefix_cache_queries", "Prompt tokens looked up.", label, stats.prefix_queries)
        yield _counter("prefix_cache_hits", "Prompt tokens found.", label, stats.prefix_hits)
        yield _counter("num_preemptions", "Sequences that gave way.", label, stats.num_preemptions)
        yield from self.readiness.read(self._model)
        workers = sources.workers()
        yield from self._read_workers(workers, sources.replicas)
        yield from self._read_model(sources.model())
        data = {} if workers.certificate_end is None else {DATA: workers.certificate_end}
        yield self._read_certificates({**sources.certificates(), **data})

    def _read_workers(self, status: WorkersStatus, replicas: int) -> Iterator[Metric]:
        workers, label = status.workers, [self._model]
        states = GaugeMetricFamily(
            f"{PREFIX}expert_workers", "Expert workers.", labels=["model_name", "state"]
        )
        for state in WorkerState:
            count = sum(worker.state is state for worker in workers)
            states.add_metric([self._model, state.value], count)
        yield states
        up = GaugeMetricFamily(
            f"{PREFIX}expert_worker_up", "Whether a worker is ready.", labels=["model_name", "rank"]
        )
        for worker in workers:
            up.add_metric([self._model, str(worker.rank)], worker.state is WorkerState.READY)
        yield up
        missing = len(status.missing)
        yield _gauge("experts_missing", "Experts that cannot be computed.", label, missing)
        fewest = "Workers that hold the expert with the fewest holders."
        yield _gauge("expert_replicas_min", fewest, label, status.num_replicas)
        yield _gauge("expert_replicas_wanted", "Workers that should hold each expert.", label, replicas)

    def _read_model(self, model: ModelStatus) -> Iterator[Metric]:
        """Only exchanged experts have a series of their own: a model may have thousands."""
        changes = CounterMetricFamily(
            f"{PREFIX}expert_exchanges", "Changes of experts.", labels=["model_name", "kind"]
        )
        for kind, count in model.changes.items():
            changes.add_metric([self._model, kind], count)
        yield changes
        versions = GaugeMetricFamily(
            f"{PREFIX}expert_version",
            "Version of an expert that is not the checkpoint's.",
            labels=["model_name", "layer", "expert"],
        )
        for module in model.exchanged:
            versions.add_metric([self._model, str(module.layer), str(module.expert)], module.version)
        yield versions

    def _read_certificates(self, ends: Mapping[str, float]) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}certificate_expiry_timestamp_seconds",
            "When the first certificate of a kind ends.",
            labels=["model_name", "certificate"],
        )
        for certificate, end in ends.items():
            family.add_metric([self._model, certificate], end)
        return family


def _gauge(stem: str, text: str, label: Sequence[str], value: float) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{stem}", text, labels=["model_name"])
    family.add_metric(label, value)
    return family


def _counter(stem: str, text: str, label: Sequence[str], value: float) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}{stem}", text, labels=["model_name"])
    family.add_metric(label, value)
    return family
