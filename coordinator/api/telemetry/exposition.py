"""Series as Prometheus' library has metrics, and its texts of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.utils import floatToGoString

from coordinator.api.telemetry.accept import wants_openmetrics
from coordinator.api.telemetry.names import COMPATIBLE, PREFIX
from coordinator.metrics.families import Family
from coordinator.metrics.store import Key

MODEL = "model_name"


def metrics_of(
    families: Iterable[Family], series: Mapping[Key, Sequence[float]], model: str
) -> Iterator[Metric]:
    """Each family, also one without series; series of other families are left out."""
    by_family: dict[str, list[tuple[tuple[str, ...], Sequence[float]]]] = {}
    for (name, labels), values in series.items():
        by_family.setdefault(name, []).append((labels, values))
    for family in families:
        first = (model,) if family.is_of_model else ()
        yield _metric(family, [((*first, *labels), each) for labels, each in by_family.get(family.name, ())])


def rendered(metrics: Iterable[Metric], accept: str, *, vllm_names: bool) -> tuple[bytes, str]:
    """The text, and its content type: OpenMetrics for those whose Accept header prefers it."""
    view = _View(metrics, vllm_names)
    if wants_openmetrics(accept):
        # Our names need no escaping, and the default one would take the colon out of vLLM's.
        text: bytes = openmetrics.generate_latest(view, openmetrics.ALLOWUTF8)  # type: ignore[no-untyped-call]
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(view), CONTENT_TYPE_PLAIN_0_0_4


def _metric(family: Family, series: Sequence[tuple[tuple[str, ...], Sequence[float]]]) -> Metric:
    labels = (MODEL, *family.labels) if family.is_of_model else family.labels
    if not family.edges:
        counter = CounterMetricFamily(family.name, family.text, labels=labels)
        for values, (count,) in series:
            counter.add_metric(values, count)
        return counter
    histogram = HistogramMetricFamily(family.name, family.text, labels=labels)
    ends = [*map(_end, family.edges), "+Inf"]
    for values, (*counts, total) in series:
        histogram.add_metric(values, list(zip(ends, accumulate(counts), strict=True)), total)
    return histogram


def _end(edge: float) -> str:
    """As the library names a bucket."""
    return floatToGoString(edge)  # type: ignore[no-untyped-call,no-any-return]


class _View:
    """What the library's writers read; on request the compatible ones a second time under vLLM's names."""

    def __init__(self, metrics: Iterable[Metric], vllm_names: bool) -> None:
        self._metrics = metrics
        self._vllm_names = vllm_names

    def collect(self) -> Iterator[Metric]:
        for metric in self._metrics:
            yield metric
            stem = metric.name.removeprefix(PREFIX)
            if self._vllm_names and metric.name.startswith(PREFIX) and stem in COMPATIBLE:
                yield _renamed(metric, f"vllm:{COMPATIBLE[stem]}")


def _renamed(metric: Metric, name: str) -> Metric:
    twin = Metric(name, metric.documentation, metric.type, metric.unit)
    for sample in metric.samples:
        twin.samples.append(sample._replace(name=name + sample.name[len(metric.name) :]))
    return twin
