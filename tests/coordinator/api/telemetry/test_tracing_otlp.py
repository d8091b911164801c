"""A receiver of traces that is wrong, down, slow or back: what is said; nothing waits long for it."""

import logging
import socket
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from coordinator.api.telemetry import tracing_otlp
from coordinator.api.telemetry.tracing import Tracing
from coordinator.api.telemetry.tracing_otlp import CLOSE_SECONDS, Endpoint, Sender
from coordinator.config.observability import ObservabilityConfig
from coordinator.metrics.ledger import Ledger
from coordinator.server.watchers import Watchers
from moe_model.errors import ConfigError
from tests.coordinator.api.fakes import PATIENCE

LOCAL = Endpoint("127.0.0.1", 4317, encrypted=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://localhost:4317", "http://localhost:4317"),
        ("HTTPS://Collector.example:443/", "https://collector.example:443"),
        ("http://[::1]:4317", "http://[::1]:4317"),
    ],
)
def test_endpoints(text: str, shown: str) -> None:
    assert str(Endpoint.parse(text)) == shown


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "does not begin with http"),
        ("localhost:4317", "does not begin with http"),
        ("127.0.0.1:4317", "does not begin with http"),
        ("grpc://localhost:4317", "does not begin with http"),
        ("http:localhost:4317", "does not begin with http"),
        ("http://localhost", "names no port"),
        ("http://localhost:", "names no port"),
        ("http://localhost:0", "names no port"),
        ("http://localhost:port", "is no URL"),
        ("http://localhost:99999", "is no URL"),
        ("http://[::1:4317", "is no URL"),
        ("http://:4317", "names no host"),
        ("http://a b:4317", "names no host"),
        ("http://localhost:4318/v1/traces", "has a path"),
        ("http://localhost:4317?x=1", "has a path"),
        ("http://me:secret@localhost:4317", "has a user or a password"),
    ],
)
def test_what_is_no_endpoint_ends_the_start_at_once(text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"^--otlp-endpoint: it {what}.*; say a URL such as") as caught:
        Watchers(ObservabilityConfig(otlp_endpoint=text), Ledger())
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_the_environment_that_are_wrong_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "nonsense")
    with pytest.raises(ConfigError, match=r"^--otlp-endpoint: .*nonsense"):
        Tracing.to_endpoint("http://localhost:4317")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == tracing_otlp.__name__]


@contextmanager
def listening() -> Iterator[int]:
    """Something that accepts and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with listening() as port:
        return port


def test_nothing_there_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    endpoint = Endpoint("127.0.0.1", free_port(), encrypted=False)
    Sender(None, endpoint)._look()
    expected = f"traces cannot be sent to {endpoint}: Connection refused; they are dropped until they can"
    assert lines(caplog) == [expected]


def test_a_name_that_there_is_not_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    Sender(None, Endpoint("nowhere.invalid", 4317, encrypted=False))._look()
    assert "http://nowhere.invalid:4317: Name or service not known;" in lines(caplog)[0]


@pytest.mark.parametrize("host", ["a" * 64, "b..example"])
def test_a_name_that_can_be_no_host_is_a_warning(host: str) -> None:
    assert Endpoint(host, 4317, encrypted=False).why_not() == "unknown host"


def test_what_changes_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    result = Enum("result", "SUCCESS FAILURE")
    todo = [result["FAILURE"]] * 5 + [result["SUCCESS"]] * 2 + [result["FAILURE"]]
    sender = Sender(SimpleNamespace(export=lambda spans: todo.pop(0)), LOCAL)
    while todo:
        sender.export([])
    told = [line.partition("127.0.0.1:4317")[0] + line[-5:] for line in lines(caplog)]
    down = "traces cannot be sent to http://y can"
    assert told == [down, "traces are sent to http://again", down]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kind", ["hangs", "refuses"])
def test_a_receiver_that_is_down_holds_up_no_end(
    kind: str, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bounded by the wait for it, with room for a busy machine; the package by itself takes 6 to 30 s."""
    with listening() as open_port:
        port = open_port if kind == "hangs" else free_port()
        tracing = Tracing.to_endpoint(f"{scheme}://127.0.0.1:{port}")
        for _ in range(3000):
            tracing._tracer.start_span("span").end()
        started = time.monotonic()
        tracing.close()
        assert time.monotonic() - started < CLOSE_SECONDS + 3
    assert lines(caplog)[-1] == f"the last traces could not be sent to {scheme}://127.0.0.1:{port}"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Counts the spans that come."""

    def __init__(self) -> None:
        self.num_spans = 0

    def Export(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 - its own name
        self.num_spans += sum(len(s.spans) for r in request.resource_spans for s in r.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_a_receiver_that_is_there_gets_all() -> None:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracing = Tracing.to_endpoint(f"http://127.0.0.1:{port}")
    for _ in range(100):
        tracing._tracer.start_span("span").end()
    tracing.close()
    server.stop(None).wait(PATIENCE)
    assert collector.num_spans == 100
