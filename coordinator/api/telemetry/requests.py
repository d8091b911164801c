"""Metrics of requests."""

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import TABLE, ApiError, Reason
from coordinator.api.telemetry import names
from coordinator.engine.messages.output import FinishReason
from coordinator.metrics.families import Family, ours
from coordinator.metrics.store import Histogram, Store

# What turns a request away that might have been served at another time.
REFUSALS = frozenset({Reason.QUEUE_FULL, Reason.QUOTA_EXCEEDED, Reason.NOT_READY, Reason.DRAINING})
# What a request may fail of through no fault of its caller's.
FAULTS = frozenset(
    {Reason.INTERNAL, Reason.ENGINE_LOST, Reason.EXPERT_WORKER_LOST, Reason.OUT_OF_MEMORY, Reason.NO_PROCESS}
)
# vLLM's gauge of concurrency has no more.
MAX_EDGE_CONTEXT = 1 << 20

_PROMPT_TOKENS = ours("prompt_tokens", "Prompt tokens of requests.")
_GENERATION_TOKENS = ours("generation_tokens", "Tokens generated.")
_SUCCESS = ours("request_success", "Sequences that ended, by why.", "finished_reason")
_ERRORS = ours("request_errors", "Requests that failed.", "code", "reason")
_REJECTED = ours("requests_rejected", "Requests that were refused for now.", "reason")
_COUNTERS = (_PROMPT_TOKENS, _GENERATION_TOKENS, _SUCCESS, _ERRORS, _REJECTED)


class RequestMetrics:
    """Told of every request, on the event loop. Nothing is counted before `open`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._histograms: dict[str, Histogram] = {}
        self.families: tuple[Family, ...] = ()

    def open(self, max_context: int) -> None:
        """The model is known, and with it the edges of what counts tokens."""
        histograms = _histograms(max_context)
        self._histograms = {stem: self._store.histogram(family) for stem, family in histograms.items()}
        self._prompt_tokens = self._store.counter(_PROMPT_TOKENS)
        self._generation_tokens = self._store.counter(_GENERATION_TOKENS)
        for finish in FinishReason:
            self._store.counter(_SUCCESS, finish.value)
        # Of a series that begins with its first failure, no rate would show that one.
        for reason in sorted(FAULTS):
            self._store.counter(_ERRORS, TABLE[reason].code.value, reason.value)
        for reason in sorted(REFUSALS):
            self._store.counter(_REJECTED, reason.value)
        self.families = (*histograms.values(), *_COUNTERS)

    def started(self, caller: Caller, facts: Facts) -> int | None:
        return None

    def finished(self, caller: Caller, facts: Facts, error: ApiError | None, *, cancelled: bool) -> None:
        if not self.families:
            return
        if error is not None:
            self._failed(error)
        elif cancelled:
            self._store.counter(_ERRORS, "CANCELLED", "CANCELLED").add()
        for reason in facts.finish_reasons.values():
            self._store.counter(_SUCCESS, reason).add()
        self._count(facts)
        if facts.time_to_first_token is not None:
            self._time(facts, facts.time_to_first_token)

    def _failed(self, error: ApiError) -> None:
        self._store.counter(_ERRORS, error.code.value, error.reason.value).add()
        if error.reason in REFUSALS:
            self._store.counter(_REJECTED, error.reason.value).add()

    def _count(self, facts: Facts) -> None:
        valid, seen = facts.valid, self._histograms
        if valid is None:
            return
        request = valid.request
        self._prompt_tokens.add(facts.prompt_tokens)
        self._generation_tokens.add(facts.completion_tokens)
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
        observe = seen["inter_token_latency_seconds"].observe
        for gap, count in facts.gaps:
            observe(gap, count)


def _histograms(max_context: int) -> dict[str, Family]:
    """By their stems."""
    tokens = names.one_two_five(min(max_context, MAX_EDGE_CONTEXT))
    seconds = names.REQUEST_SECONDS
    table = (
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
    )
    return {stem: ours(stem, text, edges=tuple(edges)) for stem, text, edges in table}
