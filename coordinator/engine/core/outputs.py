"""From the result of a step to what its requests are told. Moves only what a sequence has told already."""

from collections.abc import Iterator
from itertools import repeat

from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Chunk, Further, Step
from coordinator.engine.core.step_result import StepResult
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import (
    FinishReason,
    Output,
    PromptDetails,
    RoutedExperts,
    TokenLogprobs,
)
from moe_model.errors import ExpertMeshError


class OutputWriter:
    """Writes the outputs of steps, and the last words of sequences that end outside of one."""

    def write(
        self, step: Step, result: StepResult, further: Further, now: float
    ) -> Iterator[tuple[Output, Sequence]]:
        """Outputs of the step's chunks, those without news left out. Tokens have been appended, `further` are
        those after the first."""
        has_more = bool(result.logprobs or result.prompt_logprobs or result.traces)
        token_ids = iter(result.token_ids)
        logprobs = iter(result.logprobs or repeat(None))
        for chunk in step.chunks:
            sequence = chunk.sequence
            token_id, scores = (next(token_ids), next(logprobs)) if chunk.samples else (None, None)
            more = further.get(sequence.key, ()) if further else ()
            if token_id is None or has_more or sequence.first_token is None:
                new_ids = () if token_id is None else (token_id, *more)
                output = _output(chunk, result, new_ids, scores, now)
                if output is not None:
                    yield output, sequence
            else:
                # Nearly always: there is a token, not the first one, and nothing else was asked for.
                reason, stop = sequence.finish_reason()
                timings = None if reason is None else sequence.timings(now)
                request_id = sequence.request.request_id
                new_ids = (token_id, *more)
                yield Output(request_id, new_ids, reason, stop, None, timings, sequence.index), sequence

    def ended(self, sequence: Sequence, reason: FinishReason, now: float) -> Output:
        """The last output of a sequence that nothing was drawn for."""
        request_id, timings = sequence.request.request_id, sequence.timings(now)
        return Output(request_id, finish_reason=reason, timings=timings, index=sequence.index)

    def failed(self, sequence: Sequence, error: ExpertMeshError, now: float) -> Output:
        """The last output of a whole request."""
        request_id, timings = sequence.request.request_id, sequence.timings(now)
        return Output(request_id, failure=Failure.of(error), timings=timings, index=sequence.index)


def _output(
    chunk: Chunk, result: StepResult, token_ids: tuple[int, ...], scores: TokenLogprobs | None, now: float
) -> Output | None:
    """`scores` are the first token's."""
    sequence = chunk.sequence
    prompt_trace, trace = _traces(chunk, result)
    prompt = _prompt_details(chunk, result, prompt_trace)
    reason, stop = None, None
    if token_ids:
        if sequence.first_token is None:
            sequence.first_token = now
        reason, stop = sequence.finish_reason()
    elif chunk.completes and not sequence.draws:
        reason = FinishReason.LENGTH
    elif prompt is None and not trace:
        return None
    further_scores = result.further_logprobs.get(sequence.key, ())[: max(0, len(token_ids) - 1)]
    return Output(
        sequence.request.request_id,
        token_ids,
        reason,
        stop,
        timings=None if reason is None else sequence.timings(now),
        index=sequence.index,
        logprobs=() if scores is None else (scores, *further_scores),
        routed_experts=trace,
        prompt=prompt,
    )


def _prompt_details(
    chunk: Chunk, result: StepResult, trace: tuple[RoutedExperts, ...]
) -> PromptDetails | None:
    """Sequence 0 tells of the prompt: how much was cached when it has caught up, the rest as it comes."""
    sequence = chunk.sequence
    if sequence.index != 0:
        return None
    scores = result.prompt_logprobs.get(sequence.key, ())
    sequence.num_scored += len(scores)
    has_begun = chunk.completes and sequence.num_output_tokens <= 1
    num_cached = (sequence.num_cached or 0) if has_begun else 0
    if not (scores or trace or has_begun):
        return None
    return PromptDetails(num_cached, tuple(scores), trace)


def _traces(chunk: Chunk, result: StepResult) -> tuple[tuple[RoutedExperts, ...], tuple[RoutedExperts, ...]]:
    """The routing of prompt tokens and that of output tokens."""
    sequence = chunk.sequence
    trace = result.traces.get(sequence.key)
    if trace is None:
        return (), ()
    end = trace.first_position + len(trace.ids_TLK)
    if chunk.draft:
        # Not of what was drafted and is not there, and the last token has not been routed.
        end = min(end, len(sequence.token_ids) - 1)
    sequence.num_traced = max(sequence.num_traced, end)
    num_prompt = len(sequence.request.prompt_ids)
    return trace.between(0, num_prompt), trace.between(num_prompt, end)
