from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from coordinator.api.tracing import RequestSpan, Tracing
from coordinator.engine.observer import StepRecord, Traced


def test_a_step_s_span_says_which_experts_the_request_uses() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    handle = RequestSpan(tracing._tracer.start_span("request"))
    record = StepRecord(1, 2, 0.1, 5, 2, 3, 3, traces=(Traced(handle, 4, ("1/0:2", "1/3:1")),))
    tracing.step(record)
    tracing.close()
    (span,) = exporter.get_finished_spans()
    assert span.name == "engine.step"
    assert dict(span.attributes or {}) == {
        "expertmesh.step.tokens": 5,
        "expertmesh.step.sequences": 3,
        "expertmesh.model.generation": 4,
        "expertmesh.expert_versions": ("1/0:2", "1/3:1"),
    }
