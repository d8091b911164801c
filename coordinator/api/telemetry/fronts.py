"""Metrics of calls: go-grpc's names for gRPC, Prometheus' for HTTP. Labels are methods that exist."""

from coordinator.metrics.families import PREFIX, Family
from coordinator.metrics.store import Store

UNKNOWN = "unknown"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
HTTP_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})

_METHOD = ("grpc_type", "grpc_service", "grpc_method")
_HANDLER = ("handler", "method", "status")


def _of_calls(name: str, text: str, labels: tuple[str, ...], edges: tuple[float, ...] = ()) -> Family:
    return Family(name, text, labels, edges, is_of_model=False)


_STARTED = _of_calls("grpc_server_started", "Calls begun.", _METHOD)
_HANDLED = _of_calls("grpc_server_handled", "Calls ended.", (*_METHOD, "grpc_code"))
_HANDLING = _of_calls("grpc_server_handling_seconds", "Time of calls.", _METHOD, SECONDS)
_UNKNOWN_FIELDS = _of_calls(
    f"{PREFIX}grpc_unknown_fields",
    "Requests with fields that this server does not know.",
    ("grpc_service", "grpc_method"),
)
_REQUESTS = _of_calls("http_requests", "Requests answered.", _HANDLER)
_DURATION = _of_calls("http_request_duration_seconds", "Time of requests.", _HANDLER, SECONDS)

FAMILIES = (_STARTED, _HANDLED, _HANDLING, _UNKNOWN_FIELDS, _REQUESTS, _DURATION)


class FrontMetrics:
    """Told on the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def call_started(self, kind: str, service: str, method: str) -> None:
        self._store.counter(_STARTED, kind, service, method).add()

    def call_ended(self, kind: str, service: str, method: str, code: str, seconds: float) -> None:
        self._store.counter(_HANDLED, kind, service, method, code).add()
        self._store.histogram(_HANDLING, kind, service, method).observe(seconds)

    def unknown_fields(self, service: str, method: str) -> None:
        self._store.counter(_UNKNOWN_FIELDS, service, method).add()

    def http_observed(self, handler: str, method: str, status: int, seconds: float) -> None:
        """`handler` is a route, never a path that a caller made up."""
        labels = (handler, method if method in HTTP_METHODS else UNKNOWN, str(status))
        self._store.counter(_REQUESTS, *labels).add()
        self._store.histogram(_DURATION, *labels).observe(seconds)
