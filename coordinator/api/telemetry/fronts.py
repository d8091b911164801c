"""Metrics of calls: go-grpc's names for gRPC, Prometheus' for HTTP. Labels are methods that exist."""

from prometheus_client import CollectorRegistry, Counter, Histogram

UNKNOWN = "unknown"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
HTTP_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class FrontMetrics:
    """Told on the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        method = ["grpc_type", "grpc_service", "grpc_method"]
        self._started = Counter("grpc_server_started", "Calls begun.", method, registry=registry)
        self._handled = Counter(
            "grpc_server_handled", "Calls ended.", [*method, "grpc_code"], registry=registry
        )
        self._handling = Histogram(
            "grpc_server_handling_seconds", "Time of calls.", method, registry=registry, buckets=SECONDS
        )
        self._unknown = Counter(
            "expertmesh_grpc_unknown_fields",
            "Requests with fields that this server does not know.",
            ["grpc_service", "grpc_method"],
            registry=registry,
        )
        handler = ["handler", "method", "status"]
        self._requests = Counter("http_requests", "Requests answered.", handler, registry=registry)
        self._duration = Histogram(
            "http_request_duration_seconds", "Time of requests.", handler, registry=registry, buckets=SECONDS
        )

    def call_started(self, kind: str, service: str, method: str) -> None:
        self._started.labels(kind, service, method).inc()

    def call_ended(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        self._handled.labels(kind, service, method, code).inc()
        self._handling.labels(kind, service, method).observe(seconds)

    def unknown_fields(self, service: str, method: str) -> None:
        self._unknown.labels(service, method).inc()

    def http_observed(self, handler: str, method: str, status: int, seconds: float) -> None:
        """`handler` is a route, never a path that a caller made up."""
        labels = (handler, method if method in HTTP_METHODS else UNKNOWN, str(status))
        self._requests.labels(*labels).inc()
        self._duration.labels(*labels).observe(seconds)
