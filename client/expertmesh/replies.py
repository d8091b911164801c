"""What a server answers, from messages to plain values."""

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from expertmesh.errors import ClientError
from expertmesh.results import (
    Completion,
    Delta,
    Event,
    Finished,
    ModelInfo,
    Output,
    Started,
    Summary,
    Timings,
    TokenLogprob,
    Usage,
)
from expertmesh.v1 import generation_pb2 as pb

FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TIME_LIMIT: "time_limit",
    pb.FINISH_REASON_ABORTED: "abort",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


def completion(response: pb.GenerateResponse) -> Completion:
    output = response.outputs[0] if response.outputs else pb.SequenceOutput()
    return Completion(
        request_id=response.request_id,
        model=response.model,
        text=output.text,
        token_ids=tuple(output.token_ids),
        finish_reason=FINISH_REASONS.get(output.finish_reason, "unspecified"),
        stop_token_id=_stop_token_id(output.stop_match),
        seed=_seed(response.prompt),
        usage=_usage(response.usage),
        timings=_timings(response.timings),
        outputs=tuple(map(_output, response.outputs)),
        prompt_logprobs=_logprobs(response.prompt.logprobs),
    )


def _output(output: pb.SequenceOutput) -> Output:
    return Output(
        index=output.index,
        text=output.text,
        token_ids=tuple(output.token_ids),
        finish_reason=FINISH_REASONS.get(output.finish_reason, "unspecified"),
        stop_token_id=_stop_token_id(output.stop_match),
        stop_sequence=output.stop_match.stop_sequence or None,
        logprobs=_logprobs(output.logprobs),
        reasoning=output.reasoning,
    )


def _logprobs(logprobs: Iterable[pb.TokenLogprob]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(
            each.token_id,
            each.token_bytes,
            each.logprob if each.HasField("logprob") else None,
            each.rank if each.HasField("rank") else None,
            tuple((top.token_id, top.logprob) for top in each.top),
        )
        for each in logprobs
    )


def event(response: pb.GenerateStreamResponse) -> Event | None:
    """None for an event of a newer server, to be left out."""
    match response.WhichOneof("event"):
        case "prompt":
            info = response.prompt
            if not info.request_id:
                # More details of a prompt that has been told of.
                return None
            return Started(info.request_id, info.model, info.prompt_tokens, _seed(info))
        case "delta":
            delta = response.delta
            logprobs = _logprobs(delta.logprobs)
            token_ids = tuple(delta.token_ids)
            return Delta(delta.text, delta.num_tokens, token_ids, delta.index, logprobs, delta.reasoning)
        case "finished":
            end = response.finished
            reason = FINISH_REASONS.get(end.finish_reason, "unspecified")
            stop_sequence = end.stop_match.stop_sequence or None
            return Finished(reason, _stop_token_id(end.stop_match), end.index, stop_sequence)
        case "summary":
            return Summary(_usage(response.summary.usage), _timings(response.summary.timings))
    return None


def model_info(response: pb.GetModelInfoResponse) -> ModelInfo:
    return ModelInfo(
        model=response.model,
        aliases=tuple(response.aliases),
        architecture=response.architecture,
        max_context_length=response.max_context_length,
        max_output_tokens=response.max_output_tokens,
        vocab_size=response.vocab_size,
        eos_token_ids=tuple(response.eos_token_ids),
        temperature=response.default_sampling.temperature,
        top_p=response.default_sampling.top_p,
        top_k=response.default_sampling.top_k,
        num_moe_layers=response.num_moe_layers,
        num_experts=response.num_experts,
        experts_per_token=response.experts_per_token,
        has_chat_template=response.has_chat_template,
        max_num_sequences=response.max_num_sequences,
        supported_constraints=tuple(response.supported_constraints),
        supports_routed_experts=response.supports_routed_experts,
        min_p=response.default_sampling.min_p,
        # An older server does not say.
        repetition_penalty=response.default_sampling.repetition_penalty or 1.0,
    )


def error(code: str, message: str, details: bytes | None) -> ClientError:
    """From a status and its google.rpc details."""
    reason, field, retry_after = "", "", None
    status = status_pb2.Status()
    try:
        status.ParseFromString(details or b"")
        for packed in status.details:
            info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            retry = error_details_pb2.RetryInfo()
            if packed.Unpack(info):
                reason = info.reason
            elif packed.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
            elif packed.Unpack(retry):
                retry_after = retry.retry_delay.ToMilliseconds() / 1000
    except DecodeError:
        pass
    return ClientError(code, " ".join(message.split()), reason, field, retry_after)


def _stop_token_id(match: pb.StopMatch) -> int | None:
    kind = match.WhichOneof("match")
    if kind == "eos_token_id":
        return match.eos_token_id
    return match.stop_token_id if kind == "stop_token_id" else None


def _seed(info: pb.PromptInfo) -> int | None:
    return info.seed if info.HasField("seed") else None


def _usage(usage: pb.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens)


def _timings(timings: pb.Timings) -> Timings:
    return Timings(
        queue_time=timings.queue_time.ToTimedelta().total_seconds(),
        time_to_first_token=timings.time_to_first_token.ToTimedelta().total_seconds(),
        total_time=timings.total_time.ToTimedelta().total_seconds(),
    )
