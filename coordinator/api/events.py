"""Engine outputs -> the events of one response: prompt, delta*, finished, summary.

The unary answer is the same events, joined. Knows no transport, so every front shares it.
"""

from collections.abc import Iterable
from datetime import timedelta

from coordinator.api.validation import Generation
from coordinator.engine.request import FinishReason, Output, RequestTimings, StopRules
from moe_model.tokenizer import IncrementalDecoder, Tokenizer
from protos.expertmesh.v1 import generation_pb2 as pb

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
    FinishReason.ABORT: pb.FINISH_REASON_ABORTED,
}


class EventWriter:
    """Turns the outputs of one generation into events. `done` once the summary is out."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer | None) -> None:
        wants_text = generation.return_text and tokenizer is not None
        self._decoder = IncrementalDecoder(tokenizer) if wants_text and tokenizer else None
        self._generation = generation
        self.num_tokens = 0
        self.done = False

    def prompt(self) -> pb.GenerateStreamResponse:
        """The first event; it can go out before there is any output."""
        request = self._generation.request
        info = pb.PromptInfo(
            request_id=request.request_id,
            model=self._generation.model,
            prompt_tokens=len(request.prompt_ids),
            seed=self._generation.seed,
        )
        return pb.GenerateStreamResponse(prompt=info)

    def events(self, output: Output) -> list[pb.GenerateStreamResponse]:
        """What one output says; the last output also ends the sequence and the request."""
        assert not self.done, "an output after the last one"
        self.num_tokens += len(output.token_ids)
        delta = self._delta(output)
        events = []
        if delta.num_tokens or delta.text:
            events.append(pb.GenerateStreamResponse(delta=delta))
        if output.finish_reason is not None:
            self.done = True
            events.append(pb.GenerateStreamResponse(finished=self._finished(output)))
            events.append(pb.GenerateStreamResponse(summary=self._summary(output)))
        return events

    def _delta(self, output: Output) -> pb.SequenceDelta:
        return pb.SequenceDelta(
            index=self._generation.request.sequence_index,
            text=self._text(output),
            num_tokens=len(output.token_ids),
            token_ids=output.token_ids if self._generation.return_token_ids else (),
        )

    def _text(self, output: Output) -> str:
        """The token that ended the sequence is counted but is no text."""
        if self._decoder is None:
            return ""
        shown = output.token_ids if output.stop_token_id is None else output.token_ids[:-1]
        text = self._decoder.push(shown)
        return text if output.finish_reason is None else text + self._decoder.flush()

    def _finished(self, output: Output) -> pb.SequenceFinished:
        assert output.finish_reason is not None
        return pb.SequenceFinished(
            index=self._generation.request.sequence_index,
            finish_reason=FINISH_REASONS[output.finish_reason],
            stop_match=stop_match(output.stop_token_id, self._generation.request.stop),
        )

    def _summary(self, output: Output) -> pb.StreamSummary:
        usage = pb.Usage(
            prompt_tokens=len(self._generation.request.prompt_ids), completion_tokens=self.num_tokens
        )
        return pb.StreamSummary(usage=usage, timings=timings_message(output.timings))


def stop_match(stop_token_id: int | None, rules: StopRules) -> pb.StopMatch | None:
    """What a sequence stopped at. A token that is both EOS and the caller's counts as EOS while EOS acts."""
    if stop_token_id is None:
        return None
    if stop_token_id in rules.eos_token_ids and not rules.ignore_eos:
        return pb.StopMatch(eos_token_id=stop_token_id)
    return pb.StopMatch(stop_token_id=stop_token_id)


def timings_message(timings: RequestTimings | None) -> pb.Timings | None:
    if timings is None:
        return None
    return pb.Timings(
        queue_time=timedelta(seconds=timings.queue_time),
        time_to_first_token=timedelta(seconds=timings.time_to_first_token),
        total_time=timedelta(seconds=timings.total_time),
    )


def join(events: Iterable[pb.GenerateStreamResponse]) -> pb.GenerateResponse:
    """The whole response that a complete stream amounts to."""
    response = pb.GenerateResponse()
    outputs: dict[int, pb.SequenceOutput] = {}
    texts: dict[int, list[str]] = {}
    for event in events:
        match event.WhichOneof("event"):
            case "prompt":
                response.prompt.MergeFrom(event.prompt)
            case "delta":
                delta = event.delta
                output = outputs.setdefault(delta.index, pb.SequenceOutput(index=delta.index))
                output.token_ids.extend(delta.token_ids)
                texts.setdefault(delta.index, []).append(delta.text)
            case "finished":
                _finish(outputs, event.finished)
            case "summary":
                response.usage.CopyFrom(event.summary.usage)
                response.timings.CopyFrom(event.summary.timings)
    for index, output in sorted(outputs.items()):
        output.text = "".join(texts.get(index, ()))
        response.outputs.append(output)
    response.request_id = response.prompt.request_id
    response.model = response.prompt.model
    return response


def _finish(outputs: dict[int, pb.SequenceOutput], finished: pb.SequenceFinished) -> None:
    output = outputs.setdefault(finished.index, pb.SequenceOutput(index=finished.index))
    output.finish_reason = finished.finish_reason
    if finished.HasField("stop_match"):
        output.stop_match.CopyFrom(finished.stop_match)
