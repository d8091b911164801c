"""Metrics of requests and of the engine's steps."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.telemetry import names
from coordinator.api.telemetry.names import PREFIX
from coordinator.engine.messages.output import FinishReason
from coordinator.engine.messages.records import StepRecord

# What turns a request away that might have been served at another time.
REFUSALS = frozenset({Reason.QUEUE_FULL, Reason.QUOTA_EXCEEDED, Reason.NOT_READY, Reason.DRAINING})
# vLLM's gauge of concurrency has no more.
MAX_EDGE_CONTEXT = 1 << 20


class RequestMetrics:
    """Told of every request on the event loop, and of every step on the engine's thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._model = ""
        self._histograms: dict[str, Histogram] = {}
        self._counters: dict[str, Counter] = {}

    def open(self, model: str, max_context: int) -> None:
        self._model = model
        for stem, text, edges in _histograms(max_context):
            self._histograms[stem] = Histogram(
                f"{PREFIX}{stem}", text, ["model_name"], registry=self._registry, buckets=tuple(edges)
            ).labels(model)
        for stem, text, label in _COUNTERS:
            labels = ["model_name", *label]
            counter = Counter(f"{PREFIX}{stem}", text, labels, registry=self._registry)
            self._counters[stem] = counter if label else counter.labels(model)
        for reason in FinishReason:
            self._counters["request_success"].labels(model, reason.value)
        step = Histogram(
            f"{PREFIX}step_seconds",
            "One step of the engine.",
            ["model_name", "phase"],
            registry=self._registry,
            buckets=names.SHORT_SECONDS,
        )
        self._steps = {phase: step.labels(model, phase) for phase in ("prefill", "decode")}

    def started(self, caller: Caller, facts: Facts) -> int | None:
        return None

    def step(self, record: StepRecord) -> None:
        if not self._model:
            return
        self._steps[record.phase].observe(record.seconds)
        self._histograms["iteration_tokens"].observe(record.num_tokens)

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        if not self._model:
            return
        if error is not None:
            self._failed(error)
        elif cancelled:
            self._counters["request_errors"].labels(self._model, "CANCELLED", "CANCELLED").inc()
        for reason in facts.finish_reasons.values():
            self._counters["request_success"].labels(self._model, reason).inc()
        self._count(facts)
        if facts.time_to_first_token is not None:
            self._time(facts, facts.time_to_first_token)

    def _failed(self, error: ApiError) -> None:
        self._counters["request_errors"].labels(self._model, error.code.value, error.reason.value).inc()
        if error.reason in REFUSALS:
            self._counters["requests_rejected"].labels(self._model, error.reason.value).inc()

    def _count(self, facts: Facts) -> None:
        valid, seen = facts.valid, self._histograms
        if valid is None:
            return
        request = valid.request
        self._counters["prompt_tokens"].inc(facts.prompt_tokens)
        self._counters["generation_tokens"].inc(facts.completion_tokens)
        seen["request_prompt_tokens"].observe(facts.prompt_tokens)
        seen["request_generation_tokens"].observe(facts.completion_tokens)
        seen["request_params_max_tokens"].observe(request.stop.max_tokens)
        seen["request_params_n"].observe(request.num_sequences)

    def _time(self, facts: Facts, first_token: float) -> None:
        seen, queued = self._histograms, facts.queue_time
        seen["time_to_first_token_seconds"].observe(first_token)
        seen["e2e_request_latency_seconds"].observe(facts.total_time)
        seen["request_decode_time_seconds"].observe(max(0.0, facts.total_time - first_token))
        # The engine tells it with the last output, so it is not known of a request that its client has left.
        if queued is not None:
            seen["request_queue_time_seconds"].observe(queued)
            seen["request_prefill_time_seconds"].observe(max(0.0, first_token - queued))
            seen["request_inference_time_seconds"].observe(max(0.0, facts.total_time - queued))
        num_gaps = sum(count for _, count in facts.gaps)
        if num_gaps:
            mean = sum(gap * count for gap, count in facts.gaps) / num_gaps
            seen["request_time_per_output_token_seconds"].observe(mean)
        for gap, count in facts.gaps:
            for _ in range(count):
                seen["inter_token_latency_seconds"].observe(gap)


_COUNTERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("prompt_tokens", "Prompt tokens of requests.", ()),
    ("generation_tokens", "Tokens generated.", ()),
    ("request_success", "Sequences that ended, by why.", ("finished_reason",)),
    ("request_errors", "Requests that failed.", ("code", "reason")),
    ("requests_rejected", "Requests that were refused for now.", ("reason",)),
)


def _histograms(max_context: int) -> Sequence[tuple[str, str, Sequence[float]]]:
    tokens = names.one_two_five(min(max_context, MAX_EDGE_CONTEXT))
    seconds = names.REQUEST_SECONDS
    return (
        ("time_to_first_token_seconds", "From arrival to the first token.", names.TIME_TO_FIRST_TOKEN),
        ("inter_token_latency_seconds", "Between two tokens of a sequence.", names.INTER_TOKEN),
        ("request_time_per_output_token_seconds", "Mean time per token after the first.", names.INTER_TOKEN),
        ("e2e_request_latency_seconds", "From arrival to the end.", seconds),
        ("request_queue_time_seconds", "From arrival to the first scheduling.", seconds),
        ("request_prefill_time_seconds", "From there to the first token.", seconds),
        ("request_decode_time_seconds", "From the first token to the last.", seconds),
        ("request_inference_time_seconds", "From the first scheduling to the end.", seconds),
        ("request_prompt_tokens", "Prompt tokens of a request.", tokens),
        ("request_generation_tokens", "Tokens generated for a request.", tokens),
        ("request_params_max_tokens", "max_tokens of a request.", tokens),
        ("request_params_n", "Sequences of a request.", names.NUM_SEQUENCES),
        ("iteration_tokens", "Tokens of one step.", names.ITERATION_TOKENS),
    )
