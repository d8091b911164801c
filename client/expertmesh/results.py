"""What a client gets and what it may ask for, as plain typed values. Knows no transport and no protobuf."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict


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
    """New output. `token_ids` only when asked for; `reasoning`: what the model thinks, before the text."""

    text: str
    num_tokens: int
    token_ids: tuple[int, ...] = ()
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""


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
    reasoning: str = ""


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
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def _plain(value: Any) -> Any:
    """As JSON takes it: the bytes of tokens as text."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value
