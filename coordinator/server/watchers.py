"""Watchers: all that is told of requests, and what is told of their steps."""

import importlib
from typing import TYPE_CHECKING

from coordinator.api.shared.observers import RequestObservers
from coordinator.api.shared.request_log import RequestLog
from coordinator.api.telemetry.metrics import Metrics
from coordinator.config.observability import ObservabilityConfig
from coordinator.metrics.ledger import Ledger

if TYPE_CHECKING:
    from coordinator.api.telemetry.tracing import Tracing


class Watchers:
    """Metrics and the requests' log, and traces if they are asked for."""

    def __init__(self, config: ObservabilityConfig, ledger: Ledger) -> None:
        """Raises ConfigError when traces are asked for and cannot be had."""
        self.metrics = Metrics(vllm_names=config.metrics_compat == "vllm", ledger=ledger)
        self.tracing = None if config.otlp_endpoint is None else _tracing_to(config.otlp_endpoint)
        tracing = () if self.tracing is None else (self.tracing,)
        self.requests = RequestObservers([*tracing, self.metrics.requests, RequestLog()])

    def close(self) -> None:
        if self.tracing is not None:
            self.tracing.close()


def _tracing_to(endpoint: str) -> "Tracing":
    """Raises ConfigError. Its libraries are loaded for those only who want traces: a start takes a tenth less
    without."""
    module = importlib.import_module("coordinator.api.telemetry.tracing")
    found: Tracing = module.Tracing.to_endpoint(endpoint)
    return found
