from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.telemetry import tracing
from coordinator.api.telemetry.tracing import Tracing
from coordinator.api.telemetry.tracing_names import started_attributes
from coordinator.engine.messages.records import StepRecord, TracedRequest, TracedStep
from tests.coordinator.api.made_requests import resolved


def test_a_step_s_span_says_which_experts_the_request_uses() -> None:
    exporter = InMemorySpanExporter()
    found = Tracing(SimpleSpanProcessor(exporter))
    caller, facts, other = Caller("own"), Facts(resolved("")), Facts(resolved(""))
    number, ended = found.started(caller, facts), found.started(caller, other)
    assert number is not None
    assert ended is not None
    found.finished(caller, other, None, cancelled=False)
    traces = (TracedRequest(number, 4, ("1/0:2", "1/3:1")), TracedRequest(ended, 4))
    found.told(TracedStep(StepRecord(1, 2, 0.1, 5, 2, 3, 3, traces=traces)))
    found.finished(caller, facts, None, cancelled=False)
    found.close()
    _, span, request = exporter.get_finished_spans()
    assert (span.name, span.parent) == ("engine.step", request.context)
    assert request.attributes is not None
    assert request.attributes["expertmesh.num_steps"] == 1
    assert dict(span.attributes or {}) == {
        "expertmesh.step.tokens": 5,
        "expertmesh.step.sequences": 3,
        "expertmesh.model.generation": 4,
        "expertmesh.expert_versions": ("1/0:2", "1/3:1"),
    }


def test_a_request_s_span_has_the_ids_that_came_with_it() -> None:
    valid = resolved("")
    for transport, prefix in (("http", "http.request.header"), ("grpc", "rpc.request.metadata")):
        caller = Caller("own", transport=transport, given_ids={"x-request-id": "Root=1"})
        found = started_attributes(caller, valid)
        assert found["gen_ai.response.id"] == "own"
        assert found[f"{prefix}.x-request-id"] == ["Root=1"]


@pytest.mark.parametrize(
    ("endpoint", "is_direct"),
    [
        ("http://127.0.0.1:4317", True),
        ("https://localhost:4317", True),
        ("http://[::1]:4317", True),
        ("http://collector.example:4317", False),
    ],
)
def test_no_proxy_leads_to_a_collector_of_this_machine(
    endpoint: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def exporter(**options: Any) -> InMemorySpanExporter:
        asked.update(options)
        return InMemorySpanExporter()

    monkeypatch.setattr(tracing, "OTLPSpanExporter", exporter)
    Tracing.to_endpoint(endpoint).close()
    assert asked["channel_options"] == ((("grpc.enable_http_proxy", 0),) if is_direct else None)
