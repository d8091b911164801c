"""OpenTelemetry traces of requests: one span each, with the engine's steps and the dispatches below it.

An optional extra. Without the packages nothing here does anything, and asking for it is an error.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import ApiError
from coordinator.api.telemetry.tracing_names import finished_attributes, span_name, started_attributes
from coordinator.api.telemetry.tracing_otlp import Endpoint, Sender
from coordinator.engine.messages.records import TracedRequest, TracedStep
from expertmesh.address import proxy_options
from moe_model.errors import ConfigError

try:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError:
    IS_INSTALLED = False
else:
    IS_INSTALLED = True

# Of one request; a longer one says how many steps it had.
MAX_STEP_SPANS = 256


@dataclass(slots=True, eq=False)
class RequestSpan:
    """The span of a request. `number` travels with the request in its place; `num_steps` counts all steps,
    also those without a span."""

    span: Any
    number: int
    num_steps: int = 0
    is_open: bool = True


class Tracing:
    """A RequestObserver that is told of the steps of its requests."""

    def __init__(self, processor: "SpanProcessor", sender: Sender | None = None) -> None:
        if not IS_INSTALLED:
            raise ConfigError("tracing: needs the extra packages of expertmesh[tracing]")
        self._sender = sender
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "expertmesh"}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("expertmesh")
        self._propagator = TraceContextTextMapPropagator()
        # By their facts: a request with an id that is taken must not end the other's span.
        self._spans: dict[int, RequestSpan] = {}
        # The same ones by the numbers that steps name them by.
        self._recording: dict[int, RequestSpan] = {}
        self._numbers = itertools.count()
        # Steps end on the engine's thread, requests on the event loop.
        self._lock = threading.Lock()

    @classmethod
    def to_endpoint(cls, endpoint: str) -> "Tracing":
        """Sends spans to an OTLP/gRPC receiver, in the background. Raises ConfigError."""
        if not IS_INSTALLED:
            raise ConfigError("tracing: needs the extra packages of expertmesh[tracing]")
        where = Endpoint.parse(endpoint)
        # Its type has texts only, and gRPC's options are numbers as well.
        options: Any = proxy_options(where.address) or None
        try:
            exporter = OTLPSpanExporter(
                endpoint=str(where),
                insecure=not where.encrypted,
                channel_options=options,
            )
        except Exception as error:  # noqa: BLE001 - of what the environment says, which only it looks at
            raise ConfigError(f"--otlp-endpoint: {error}") from None
        sender = Sender(exporter, where)
        sender.look()
        return cls(BatchSpanProcessor(sender), sender)  # type: ignore[arg-type]  # it has an exporter's methods

    def started(self, caller: Caller, facts: Facts) -> int | None:
        if facts.valid is None:
            return None
        parent = self._propagator.extract(dict(caller.trace_parent))
        span = self._tracer.start_span(
            span_name(facts.valid),
            parent,
            kind=SpanKind.SERVER,
            attributes=started_attributes(caller, facts.valid),
        )
        handle = self._spans[id(facts)] = RequestSpan(span, next(self._numbers))
        if not span.is_recording():
            return None
        self._recording[handle.number] = handle
        return handle.number

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        handle = self._spans.pop(id(facts), None)
        if handle is None:
            return
        self._recording.pop(handle.number, None)
        with self._lock:
            handle.is_open = False
            attributes = finished_attributes(facts, error, handle.num_steps, cancelled=cancelled)
        handle.span.set_attributes(attributes)
        if error is not None:
            handle.span.set_status(Status(StatusCode.ERROR, error.reason.value))
        handle.span.end()

    def told(self, traced: TracedStep) -> None:
        """A step of traced requests, on any thread."""
        for request in traced.step.traces:
            # A request that has ended since then has no span any more.
            handle = self._recording.get(request.trace)
            if handle is not None:
                self._step_span(handle, request, traced)

    def _step_span(self, handle: RequestSpan, request: TracedRequest, traced: TracedStep) -> None:
        with self._lock:
            handle.num_steps += 1
            if not handle.is_open or handle.num_steps > MAX_STEP_SPANS:
                return
        context = trace.set_span_in_context(handle.span)
        attributes: dict[str, int | Sequence[str]] = {
            "expertmesh.step.tokens": traced.step.num_tokens,
            "expertmesh.step.sequences": traced.step.num_sequences,
            "expertmesh.model.generation": request.version,
            "expertmesh.expert_versions": request.expert_versions,
        }
        step = self._tracer.start_span(
            "engine.step", context, start_time=traced.step.start_ns, attributes=attributes
        )
        inside = trace.set_span_in_context(step)
        for dispatch in traced.dispatches:
            span = self._tracer.start_span(
                "experts.dispatch",
                inside,
                start_time=dispatch.start_ns,
                attributes={
                    "expertmesh.layer": dispatch.layer,
                    "expertmesh.workers": dispatch.num_workers,
                    "expertmesh.pairs": dispatch.num_pairs,
                },
            )
            span.end(dispatch.end_ns)
        step.end(traced.step.end_ns)

    def close(self) -> None:
        """Sends what is left, for at most a few seconds."""
        if self._sender is None:
            self._provider.shutdown()
        else:
            self._sender.close(self._provider.shutdown)
