"""The whole response that a complete stream of events amounts to."""

from collections.abc import Iterable

from expertmesh.v1 import generation_pb2 as pb


def join(events: Iterable[pb.GenerateStreamResponse]) -> pb.GenerateResponse:
    """Repeated fields append, text and routing too."""
    response = pb.GenerateResponse()
    outputs: dict[int, pb.SequenceOutput] = {}
    texts: dict[int, list[str]] = {}
    traces = _Traces()
    for event in events:
        match event.WhichOneof("event"):
            case "prompt":
                _join_prompt(response.prompt, event.prompt, traces)
            case "delta":
                delta = event.delta
                output = outputs.setdefault(delta.index, pb.SequenceOutput(index=delta.index))
                output.token_ids.extend(delta.token_ids)
                output.logprobs.extend(delta.logprobs)
                texts.setdefault(delta.index, []).append(delta.text)
                if delta.reasoning:
                    output.reasoning += delta.reasoning
                for call in delta.tool_calls:
                    _join_call(output, call)
                if delta.HasField("routed_experts"):
                    traces.add(delta.index, delta.routed_experts)
            case "finished":
                _finish(outputs, event.finished)
            case "summary":
                response.usage.CopyFrom(event.summary.usage)
                response.timings.CopyFrom(event.summary.timings)
    for index, output in sorted(outputs.items()):
        output.text = "".join(texts.get(index, ()))
        traces.write(index, output.routed_experts)
        response.outputs.append(output)
    traces.write(_PROMPT, response.prompt.routed_experts)
    response.request_id = response.prompt.request_id
    response.model = response.prompt.model
    return response


_PROMPT = -1


class _Traces:
    """Routing per sequence, as pieces that follow each other."""

    def __init__(self) -> None:
        self._pieces: dict[int, list[pb.RoutedExperts]] = {}

    def add(self, index: int, piece: pb.RoutedExperts) -> None:
        self._pieces.setdefault(index, []).append(piece)

    def write(self, index: int, into: pb.RoutedExperts) -> None:
        pieces = self._pieces.get(index)
        if pieces:
            into.CopyFrom(pieces[0])
            into.data = b"".join(piece.data for piece in pieces)
            into.num_tokens = sum(piece.num_tokens for piece in pieces)


def _join_prompt(into: pb.PromptInfo, piece: pb.PromptInfo, traces: _Traces) -> None:
    if piece.HasField("routed_experts"):
        traces.add(_PROMPT, piece.routed_experts)
        return
    into.MergeFrom(piece)


def _join_call(into: pb.SequenceOutput, piece: pb.ToolCallDelta) -> None:
    if piece.id:
        into.tool_calls.add(id=piece.id, name=piece.name)
    into.tool_calls[piece.index].arguments += piece.arguments


def _finish(outputs: dict[int, pb.SequenceOutput], finished: pb.SequenceFinished) -> None:
    output = outputs.setdefault(finished.index, pb.SequenceOutput(index=finished.index))
    output.finish_reason = finished.finish_reason
    if finished.HasField("stop_match"):
        output.stop_match.CopyFrom(finished.stop_match)
