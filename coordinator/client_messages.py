"""What the client sends and gets, as plain typed values. Knows the .proto messages and no transport."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from moe_model.errors import ExpertMeshError
from protos.expertmesh.v1 import generation_pb2 as pb

OVERFLOWS = {"stop": pb.CONTEXT_OVERFLOW_STOP, "slide": pb.CONTEXT_OVERFLOW_SLIDE}
FINISH_REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TIME_LIMIT: "time_limit",
    pb.FINISH_REASON_ABORTED: "abort",
}


class ClientError(ExpertMeshError):
    """A call failed. `code` is the gRPC status by name; `reason` and `field` are empty when unknown."""

    def __init__(self, code: str, message: str, reason: str = "", field: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field


class GenerateOptions(TypedDict, total=False):
    """Fields of GenerateRequest; what is left out is the server's own default."""

    request_id: str
    model: str
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    max_tokens: int
    min_tokens: int
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    context_overflow: Literal["stop", "slide"]
    return_text: bool
    return_token_ids: bool


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


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one sequence, and the token it stopped at, if one did."""

    finish_reason: str
    stop_token_id: int | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """Last event of a stream; one without it is incomplete."""

    usage: Usage
    timings: Timings


Event = Started | Delta | Finished | Summary


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole result."""

    request_id: str
    model: str
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_token_id: int | None
    seed: int | None
    usage: Usage
    timings: Timings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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


# Where each option stands in the request.
_GROUPS = {
    "sampling": ("temperature", "top_p", "top_k", "min_p", "seed"),
    "stopping": ("max_tokens", "min_tokens", "stop_token_ids", "ignore_eos", "context_overflow"),
    "response": ("return_text", "return_token_ids"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}


def generate_request(prompt: str | Sequence[int], options: GenerateOptions) -> pb.GenerateRequest:
    """Raises ClientError for a value that the message cannot hold; the server checks all others."""
    request = pb.GenerateRequest()
    if isinstance(prompt, str):
        _put(request, "text", prompt, "prompt.text")
    else:
        request.token_ids.SetInParent()
        _put(request.token_ids, "ids", prompt, "prompt.token_ids")
    for name, value in options.items():
        group = _GROUP_OF.get(name)
        if name == "context_overflow" and isinstance(value, str):
            value = OVERFLOWS.get(value, value)
        target = getattr(request, group) if group else request
        _put(target, name, value, f"{group}.{name}" if group else name)
    return request


def tokenize_request(text: str, add_special_tokens: bool) -> pb.TokenizeRequest:
    """Raises ClientError."""
    request = pb.TokenizeRequest(add_special_tokens=add_special_tokens)
    _put(request, "text", text, "text")
    return request


def detokenize_request(token_ids: Sequence[int], skip_special_tokens: bool) -> pb.DetokenizeRequest:
    """Raises ClientError."""
    request = pb.DetokenizeRequest(skip_special_tokens=skip_special_tokens)
    _put(request, "token_ids", token_ids, "token_ids")
    return request


def _put(message: Message, name: str, value: Any, field: str) -> None:
    try:
        if isinstance(value, Sequence) and not isinstance(value, str):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    except (ValueError, TypeError, AttributeError):
        # protobuf's own text has several lines and names nothing.
        text = f"{field}: {str(value)[:80]!r} is not a value of this field"
        raise ClientError("INVALID_ARGUMENT", text, "INVALID_FIELD", field) from None


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
    )


def event(response: pb.GenerateStreamResponse) -> Event | None:
    """None for an event of a newer server, to be left out."""
    match response.WhichOneof("event"):
        case "prompt":
            info = response.prompt
            return Started(info.request_id, info.model, info.prompt_tokens, _seed(info))
        case "delta":
            delta = response.delta
            return Delta(delta.text, delta.num_tokens, tuple(delta.token_ids), delta.index)
        case "finished":
            end = response.finished
            reason = FINISH_REASONS.get(end.finish_reason, "unspecified")
            return Finished(reason, _stop_token_id(end.stop_match), end.index)
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
    )


def error(code: str, message: str, details: bytes | None) -> ClientError:
    """From a status and its google.rpc details."""
    reason = field = ""
    status = status_pb2.Status()
    try:
        status.ParseFromString(details or b"")
        for packed in status.details:
            info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if packed.Unpack(info):
                reason = info.reason
            elif packed.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
    except DecodeError:
        pass
    return ClientError(code, " ".join(message.split()), reason, field)


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
