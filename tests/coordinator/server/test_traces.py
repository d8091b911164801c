"""A server's spans, as a collector gets them: a request's, its steps in it, and their dispatches in those."""

from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from coordinator.config.observability import ObservabilityConfig
from coordinator.server.main import open_server
from expertmesh import AsyncClient
from tests.scenarios.starting import config_of

NUM_TOKENS = 3


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that come."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def Export(self, request, context):  # type: ignore[no-untyped-def]  # noqa: N802 - its own name
        self.spans += [span for r in request.resource_spans for s in r.scope_spans for span in s.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector, server = Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


async def test_a_request_has_its_steps_and_they_their_dispatches(tiny_checkpoint: Path) -> None:
    with collecting() as (collector, endpoint):
        config = replace(
            config_of(tiny_checkpoint), observability=ObservabilityConfig(otlp_endpoint=endpoint)
        )
        async with open_server(config) as server, AsyncClient(server.fronts.grpc.address) as client:
            await client.generate([1, 2, 3], max_tokens=NUM_TOKENS, ignore_eos=True)
            num_layers = server.model.config.n_layers
        spans = {span.span_id: span for span in collector.spans}
        parents = Counter(
            (span.name, spans[span.parent_span_id].name if span.parent_span_id else "")
            for span in spans.values()
        )
        assert parents == {
            ("text_completion tiny", ""): 1,
            ("engine.step", "text_completion tiny"): NUM_TOKENS,
            ("experts.dispatch", "engine.step"): NUM_TOKENS * num_layers,
        }
