"""Metrics of readiness: whether the server is ready, and how often it has stopped being so."""

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from coordinator.api.telemetry.names import PREFIX
from coordinator.metrics.ledger import Ledger


class ReadinessMetrics:
    """Told of every change of a front's readiness, on its event loop. A front that has died is not ready,
    which the others tell in its place."""

    def __init__(self, ledger: Ledger) -> None:
        self._ready = ledger.held("ready")
        self._losses = ledger.kept("readiness_losses")

    async def changed(self, ready: bool) -> None:
        self._ready.own[0] = float(ready)
        if not ready:
            self._losses.own[0] += 1

    def read(self, model: str) -> Iterator[Metric]:
        """Of all fronts together, which are ready when each of them is. What turns one turns all, mostly, and
        is one loss."""
        gauge = GaugeMetricFamily(f"{PREFIX}ready", "Whether each front is ready.", labels=["model_name"])
        gauge.add_metric([model], min(numbers[0] for numbers in self._ready.each()))
        yield gauge
        losses = CounterMetricFamily(
            f"{PREFIX}readiness_losses",
            "Times that the server stopped being ready; of its fronts, the one with the most.",
            labels=["model_name"],
        )
        losses.add_metric([model], max(numbers[0] for numbers in self._losses.each()))
        yield losses
