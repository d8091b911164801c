"""What the client gets, and what it may ask for, as plain typed values. Knows no transport."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from expertmesh.errors import ExpertMeshError
from expertmesh.v1 import generation_pb2 as pb

FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TIME_LIMIT: "time_limit",
    pb.FINISH_REASON_ABORTED: "abort",
}


class ClientError(ExpertMeshError):
    """A call failed. `code` is the gRPC status by name; `reason` and `field` are empty when unknown.

    `retry_after`: seconds after which the server would see the call again; below 0 never, None: not said.
    """

    def __init__(
        self,
        code: str,
        message: str,
        reason: str = "",
        field: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after = retry_after


class GenerateOptions(TypedDict, total=False):
    """Fields of GenerateRequest; what is left out is the server's own default."""

    request_id: str
    model: str
    truncate_prompt_tokens: int
    add_special_tokens: bool
    add_generation_prompt: bool
    continue_final_message: bool
    template_kwargs: Mapping[str, Any]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    seed: int
    num_sequences: int
    logit_bias: Mapping[int, float]
    allowed_token_ids: Sequence[int]
    bad_words: Sequence[str]
    max_tokens: int
    min_tokens: int
    stop_sequences: Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    include_stop_in_output: bool
    time_limit: float
    context_overflow: Literal["stop", "slide"]
    return_text: bool
    return_token_ids: bool
    return_prompt_token_ids: bool
    logprobs: int
    prompt_logprobs: int
    skip_special_tokens: bool
    return_routed_experts: bool
    min_tokens_per_message: int
    json_schema: str
    json_object: bool
    compact_json: bool
    regex: str
    choices: Sequence[str]
    grammar: str
    allowed_experts: Sequence[int]
    denied_experts: Sequence[int]
    experts_per_token: int


# Messages of a conversation: {"role": ..., "content": ...} each.
Chat = Sequence[Mapping[str, str]]
Prompt = str | Sequence[int] | Chat


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log probability and rank, and (token id, logprob) of the best. None: not known."""

    token_id: int
    token_bytes: bytes
    logprob: float | None
    rank: int | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds since the request arrived at the server."""

    queue_time: float
    time_to_first_token: float
    total_time: float


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream. `seed` is None for greedy decoding."""

    request_id: str
    model: str
    prompt_tokens: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class Delta:
    """New output. `token_ids` only when asked for."""

    text: str
    num_tokens: int
    token_ids: tuple[int, ...] = ()
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one sequence, and the token or text it stopped at, if it did."""

    finish_reason: str
    stop_token_id: int | None = None
    index: int = 0
    stop_sequence: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Last event of a stream; one without it is incomplete."""

    usage: Usage
    timings: Timings


Event = Started | Delta | Finished | Summary


@dataclass(frozen=True, slots=True)
class Output:
    """One whole sequence."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_token_id: int | None
    stop_sequence: str | None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole result: its first sequence, and all of them in `outputs`."""

    request_id: str
    model: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_token_id: int | None
    seed: int | None
    usage: Usage
    timings: Timings
    outputs: tuple[Output, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model with its limits and defaults."""

    model: str
    aliases: tuple[str, ...]
    architecture: str
    max_context_length: int
    max_output_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    num_moe_layers: int
    num_experts: int
    experts_per_token: int
    has_chat_template: bool = False
    max_num_sequences: int = 1
    supported_constraints: tuple[str, ...] = ()
    supports_routed_experts: bool = False


def _plain(value: Any) -> Any:
    """As JSON takes it: the bytes of tokens as text."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


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
            return Delta(delta.text, delta.num_tokens, tuple(delta.token_ids), delta.index, logprobs)
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
