"""Watchers: all that is told of requests, and what is told of their steps."""

from coordinator.api.shared.observers import RequestObservers
from coordinator.api.shared.request_log import RequestLog
from coordinator.api.telemetry.metrics import Metrics
from coordinator.api.telemetry.tracing import Tracing
from coordinator.config.observability import ObservabilityConfig
from coordinator.metrics.ledger import Ledger


class Watchers:
    """Metrics and the requests' log, and traces if they are asked for."""

    def __init__(self, config: ObservabilityConfig, ledger: Ledger) -> None:
        """Raises ConfigError when traces are asked for and cannot be had."""
        self.metrics = Metrics(vllm_names=config.metrics_compat == "vllm", ledger=ledger)
        endpoint = config.otlp_endpoint
        self.tracing = None if endpoint is None else Tracing.to_endpoint(endpoint)
        tracing = () if self.tracing is None else (self.tracing,)
        self.requests = RequestObservers([*tracing, self.metrics.requests, RequestLog()])

    def close(self) -> None:
        if self.tracing is not None:
            self.tracing.close()
