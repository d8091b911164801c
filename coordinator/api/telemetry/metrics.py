"""Metrics: one registry, fed by the engine, the pool and the fronts, and read by /metrics.

Labels have few values and never come from a caller. What is known elsewhere is read when it is asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from coordinator.api.telemetry.accept import wants_openmetrics
from coordinator.api.telemetry.experts import ExpertMetrics
from coordinator.api.telemetry.fronts import FrontMetrics
from coordinator.api.telemetry.names import COMPATIBLE, PREFIX
from coordinator.api.telemetry.requests import RequestMetrics
from coordinator.engine.messages.stats import EngineStats, ModelStatus, WorkersStatus
from expert_workers.status import WorkerState


@dataclass(frozen=True, slots=True)
class MetricSources:
    """What is read when metrics are asked for."""

    stats: Callable[[], EngineStats]
    model: Callable[[], ModelStatus]
    workers: Callable[[], WorkersStatus]
    block_size: int


class Metrics:
    """All metrics of one server."""

    def __init__(self, *, vllm_names: bool = False) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._vllm_names = vllm_names
        self._model = ""
        self._sources: MetricSources | None = None
        self.requests = RequestMetrics(self._registry)
        self.experts = ExpertMetrics(self._registry)
        self.fronts = FrontMetrics(self._registry)
        self._registry.register(_Reader(self._read))

    def open(self, model: str, max_context: int, sources: MetricSources) -> None:
        """The server is up."""
        self._model = model
        self._sources = sources
        self.requests.open(model, max_context)
        self.experts.open(model, [worker.rank for worker in sources.workers().workers])

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text, and its content type: OpenMetrics for those whose Accept header prefers it."""
        view = _View(self._registry, self._vllm_names)
        if wants_openmetrics(accept):
            # Our names need no escaping, and the default one would take the colon out of vLLM's.
            text: bytes = openmetrics.generate_latest(view, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
            return text, openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(view), CONTENT_TYPE_PLAIN_0_0_4

    def _read(self) -> Iterator[Metric]:
        if self._sources is None:
            return
        stats, label = self._sources.stats(), [self._model]
        yield _gauge("num_requests_running", "Sequences being generated.", label, stats.num_running)
        yield _gauge("num_requests_waiting", "Sequences waiting.", label, stats.num_waiting)
        yield _gauge("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", label, stats.kv_usage)
        info = GaugeMetricFamily(
            f"{PREFIX}cache_config_info",
            "Sizes of the KV cache.",
            labels=["model_name", "block_size", "num_blocks"],
        )
        info.add_metric([self._model, str(self._sources.block_size), str(stats.num_blocks)], 1)
        yield info
        yield _counter("prefix_cache_queries", "Prompt tokens looked up.", label, stats.prefix_queries)
        yield _counter("prefix_cache_hits", "Prompt tokens found.", label, stats.prefix_hits)
        yield _counter("num_preemptions", "Sequences that gave way.", label, stats.num_preemptions)
        yield from self._read_workers(self._sources.workers())
        yield from self._read_model(self._sources.model())

    def _read_workers(self, status: WorkersStatus) -> Iterator[Metric]:
        workers = status.workers
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
        yield _gauge("experts_missing", "Experts that cannot be computed.", [self._model], missing)

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


class _Reader:
    """A collector over a function."""

    def __init__(self, read: Callable[[], Iterator[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()


class _View:
    """A registry's metrics without the times at which they were made, which double the series and are
    not read; and on request the compatible ones a second time under vLLM's names."""

    def __init__(self, registry: CollectorRegistry, vllm_names: bool) -> None:
        self._registry = registry
        self._vllm_names = vllm_names

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
            stem = metric.name.removeprefix(PREFIX)
            if self._vllm_names and metric.name.startswith(PREFIX) and stem in COMPATIBLE:
                yield _renamed(metric, f"vllm:{COMPATIBLE[stem]}")


def _renamed(metric: Metric, name: str) -> Metric:
    twin = Metric(name, metric.documentation, metric.type, metric.unit)
    for sample in metric.samples:
        twin.samples.append(sample._replace(name=name + sample.name[len(metric.name) :]))
    return twin


def _gauge(stem: str, text: str, label: Sequence[str], value: float) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}{stem}", text, labels=["model_name"])
    family.add_metric(label, value)
    return family


def _counter(stem: str, text: str, label: Sequence[str], value: float) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}{stem}", text, labels=["model_name"])
    family.add_metric(label, value)
    return family
