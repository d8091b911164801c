"""What an engine tells its observers of each step."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A different `Request.trace`, and the version of the model that its request uses: the number, and each
    expert that is not the checkpoint's, as layer/expert:version."""

    trace: int
    version: int = 0
    expert_versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DispatchSpan:
    """One layer's dispatch to workers. Times are `time.time_ns()`; `num_pairs` are (token, expert) pairs."""

    layer: int
    start_ns: int
    end_ns: int
    num_workers: int
    num_pairs: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step that was run. Times are `time.time_ns()`, for spans; `seconds` is by the monotonic clock.

    `num_prefill_tokens` are those of chunks that did not end in a drawn token after a single one. Of the
    `num_draft_tokens` that were computed with it, `num_accepted_tokens` were those that were drawn,
    up to a sequence's end: they are among the `num_new_tokens`.
    `traces`: of the step's requests, as far as they have one.
    """

    start_ns: int
    end_ns: int
    seconds: float
    num_tokens: int
    num_prefill_tokens: int
    num_sequences: int
    num_new_tokens: int
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    traces: tuple[TracedRequest, ...] = ()

    @property
    def phase(self) -> str:
        """A step with prompt tokens in it counts as prefill."""
        return "prefill" if self.num_prefill_tokens else "decode"


@dataclass(frozen=True, slots=True)
class TracedStep:
    """A step of requests that have a trace, and its dispatches in order."""

    step: StepRecord
    dispatches: tuple[DispatchSpan, ...] = ()
