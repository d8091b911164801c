"""Engine outputs -> the events of one response: prompt+, then delta* and finished of each sequence, summary.

Knows no transport, so every front shares it. The unary answer is the same events, joined (event_join.py).
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from coordinator.api.requests.event_details import LogprobWriter, in_pieces, routed_pieces
from coordinator.api.requests.output_parts import OutputParts
from coordinator.api.text.text_stream import TextStream
from coordinator.api.validation.request import ValidRequest
from coordinator.engine.messages.output import (
    FinishReason,
    Output,
    PromptDetails,
    RequestTimings,
    RoutedExperts,
    Stop,
    TokenLogprobs,
)
from coordinator.engine.messages.request import StopRules
from coordinator.tools.pieces import Said
from expertmesh.v1 import generation_pb2 as pb
from moe_model.text.tokenizer import Tokenizer
from moe_model.text.visible_bytes import VisibleBytes

Event = pb.GenerateStreamResponse
E = TypeVar("E")
# Makes an event of a sequence's index, new text, number of tokens and token ids.
MakeDelta = Callable[[int, str, int, Sequence[int]], E]

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
    FinishReason.ABORT: pb.FINISH_REASON_ABORTED,
}


class EventWriter(Generic[E]):
    """Turns the outputs of one generation into events. `done` once the summary is out.

    A delta of tokens and text alone becomes what `plain` makes of it: see plain_delta.py.
    """

    def __init__(self, valid: ValidRequest, tokenizer: Tokenizer | None, plain: MakeDelta[E]) -> None:
        self._valid = valid
        request = valid.request
        self._logprobs = LogprobWriter(tokenizer.token_bytes if tokenizer else _no_bytes)
        self._sequences = [_SequenceWriter(valid, tokenizer, i, plain) for i in range(request.num_sequences)]
        self._open = set(range(request.num_sequences))
        self._timings: list[RequestTimings] = []
        # Deltas of the others wait here while sequence 0 still has to tell of the prompt.
        self._details_due = request.returns.needs_whole_prompt
        self._early: list[Output] = []
        self.num_cached = 0
        self.num_tokens = 0

    @property
    def done(self) -> bool:
        return not self._open

    def prompt(self) -> list[Event]:
        """The first events; they can go out before there is any output."""
        valid, request = self._valid, self._valid.request
        info = pb.PromptInfo(
            request_id=request.request_id,
            model=valid.model,
            prompt_tokens=len(request.prompt_ids),
            seed=valid.seed,
            token_ids=request.prompt_ids if valid.return_prompt_token_ids else (),
        )
        if request.returns.prompt_logprobs is not None:
            info.logprobs.append(self._logprobs.first(request.prompt_ids[0]))
        return list(_split_ids(info))

    def events(self, output: Output) -> list[Event | E]:
        """What one output says; the last one also ends the request."""
        assert not self.done, "an output after the last one"
        found: list[Event | E] = []
        if output.prompt is not None:
            found += self._prompt_events(output.prompt)
        if self._details_due and output.index != 0:
            self._early.append(output)
            return found
        if self._details_due and (output.token_ids or output.is_last):
            self._details_due = False
            found += self._told(output)
            for early in self._early:
                found += self._told(early)
            self._early = []
        else:
            found += self._told(output)
        if self.done:
            found.append(Event(summary=self._summary()))
        return found

    def _told(self, output: Output) -> list[Event | E]:
        self.num_tokens += len(output.token_ids)
        found = self._sequences[output.index].events(output)
        if output.finish_reason is not None:
            self._open.discard(output.index)
            if output.timings is not None:
                self._timings.append(output.timings)
        return found

    def _prompt_events(self, details: PromptDetails) -> list[Event]:
        self.num_cached += details.num_cached
        if not self._valid.request.returns.needs_whole_prompt:
            return []
        messages = [self._logprobs.message(each) for each in details.logprobs]
        found = [Event(prompt=pb.PromptInfo(logprobs=piece)) for piece in in_pieces(messages)]
        pieces = routed_pieces(details.routed_experts)
        return found + [Event(prompt=pb.PromptInfo(routed_experts=piece)) for piece in pieces]

    def _summary(self) -> pb.StreamSummary:
        usage = pb.Usage(
            prompt_tokens=len(self._valid.request.prompt_ids),
            completion_tokens=self.num_tokens,
            cached_prompt_tokens=self.num_cached,
            reasoning_tokens=sum(each.parts.num_thinking for each in self._sequences if each.parts),
        )
        return pb.StreamSummary(usage=usage, timings=timings_message(self._timings))


class _SequenceWriter(Generic[E]):
    """Deltas and the end of one sequence."""

    def __init__(
        self, valid: ValidRequest, tokenizer: Tokenizer | None, index: int, plain: MakeDelta[E]
    ) -> None:
        self._valid = valid
        self._plain = plain
        self._index = index
        self._logprobs = LogprobWriter(tokenizer.token_bytes if tokenizer else _no_bytes)
        self._text = _text_stream(valid, tokenizer)
        form = valid.output_form
        self.parts = None if self._text is None or form is None else OutputParts(self._text, form)
        self._unsent: list[int] = []
        self._unsent_logprobs: list[TokenLogprobs] = []
        self._unsent_traces: list[RoutedExperts] = []

    def events(self, output: Output) -> list[Event | E]:
        self._unsent += output.token_ids
        self._unsent_logprobs += output.logprobs
        self._unsent_traces += output.routed_experts
        if output.finish_reason is None:
            if len(self._unsent) < self._valid.min_tokens_per_message:
                return []
            return self._told(None)
        found = self._told(output)
        finished = pb.SequenceFinished(
            index=self._index,
            finish_reason=self._reason(output.finish_reason),
            stop_match=stop_match(output.stop, self._valid.request.stop),
        )
        return [*found, Event(finished=finished)]

    def _reason(self, reason: FinishReason) -> pb.FinishReason:
        if reason is FinishReason.STOP and self.parts is not None and self.parts.num_calls:
            return pb.FINISH_REASON_TOOL_CALLS
        return FINISH_REASONS[reason]

    def _told(self, last: Output | None) -> list[Event | E]:
        """Of the tokens that are unsent; `last` is the output that ends the sequence."""
        parts = self.parts
        if parts is None:
            if last is not None:
                return self._deltas(self._last_text(last.stop))
            return self._deltas(self._text.push(self._unsent) if self._text else "")
        if last is None:
            pieces = parts.push(self._unsent)
        else:
            pieces = parts.finish(self._shown(last.stop), None if last.stop is None else last.stop.text)
        if not pieces:
            return self._deltas("")
        if len(pieces) == 1 and isinstance(pieces[0], Said):
            return self._deltas(pieces[0].text)
        return self._deltas("", list(parts.deltas(self._index, pieces)))

    def _last_text(self, stop: Stop | None) -> str:
        """The token that ended the sequence is counted, but is text only where the caller wants it."""
        if self._text is None:
            return ""
        return self._text.finish(self._shown(stop), None if stop is None else stop.text)

    def _shown(self, stop: Stop | None) -> list[int]:
        ends = stop is not None and stop.token_id is not None and not self._valid.include_stop
        return self._unsent[:-1] if ends else self._unsent

    def _deltas(self, text: str, typed: Sequence[pb.SequenceDelta] = ()) -> list[Event | E]:
        """All that is unsent, in as many deltas as its size takes. `typed` is what is no plain text."""
        token_ids, self._unsent = self._unsent, []
        logprobs, self._unsent_logprobs = self._unsent_logprobs, []
        traces, self._unsent_traces = self._unsent_traces, []
        if not (token_ids or text or traces or typed):
            return []
        if not (logprobs or traces or typed):
            shown = token_ids if self._valid.return_token_ids else ()
            return [self._plain(self._index, text, len(token_ids), shown)]
        deltas = list(self._token_deltas(token_ids, logprobs))
        deltas[-1].text = text
        for first in typed[:1]:
            deltas[-1].MergeFrom(first)
        deltas += typed[1:]
        for piece in routed_pieces(traces):
            if deltas[-1].HasField("routed_experts") or piece.ByteSize() > 1 << 16:
                deltas.append(pb.SequenceDelta(index=self._index))
            deltas[-1].routed_experts.CopyFrom(piece)
        return [Event(delta=delta) for delta in deltas]

    def _token_deltas(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs]
    ) -> Iterator[pb.SequenceDelta]:
        messages = [self._logprobs.message(each) for each in logprobs]
        start = 0
        for piece in in_pieces(messages) if messages else [[]]:
            count = len(piece) if messages else len(token_ids)
            ids = token_ids[start : start + count]
            yield pb.SequenceDelta(
                index=self._index,
                num_tokens=count,
                token_ids=ids if self._valid.return_token_ids else (),
                logprobs=piece,
            )
            start += count


def stop_match(stop: Stop | None, rules: StopRules) -> pb.StopMatch | None:
    """What a sequence stopped at. A token that is both EOS and the caller's counts as EOS while EOS acts."""
    if stop is None:
        return None
    if stop.text is not None:
        return pb.StopMatch(stop_sequence=stop.text.text.decode())
    if stop.token_id in rules.eos_token_ids and not rules.ignore_eos:
        return pb.StopMatch(eos_token_id=stop.token_id)
    return pb.StopMatch(stop_token_id=stop.token_id)


def timings_message(timings: Sequence[RequestTimings]) -> pb.Timings | None:
    """Of a request: from its first sequence to begin to its last one to end."""
    if not timings:
        return None
    return pb.Timings(
        queue_time=timedelta(seconds=min(t.queue_time for t in timings)),
        time_to_first_token=timedelta(seconds=min(t.time_to_first_token for t in timings)),
        total_time=timedelta(seconds=max(t.total_time for t in timings)),
    )


def _text_stream(valid: ValidRequest, tokenizer: Tokenizer | None) -> TextStream | None:
    if not valid.return_text or tokenizer is None:
        return None
    stop_text = valid.request.stop.stop_text
    marks = () if valid.output_form is None else valid.output_form.marks
    shown = frozenset(found for mark in marks if (found := tokenizer.special_id(mark)) is not None)
    return TextStream(
        VisibleBytes(tokenizer, valid.skip_special_tokens, shown),
        () if stop_text is None else stop_text.sequences,
        include_stop=valid.include_stop,
    )


def _split_ids(info: pb.PromptInfo) -> Iterator[Event]:
    """A prompt of a million ids is five megabytes."""
    per_message = 1 << 17
    token_ids = list(info.token_ids)
    del info.token_ids[per_message:]
    yield Event(prompt=info)
    for start in range(per_message, len(token_ids), per_message):
        yield Event(prompt=pb.PromptInfo(token_ids=token_ids[start : start + per_message]))


def _no_bytes(_token_id: int) -> bytes:
    return b""
