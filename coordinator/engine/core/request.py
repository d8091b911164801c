"""A request and what comes of it. Plain values; the engine's own bookkeeping is in sequence.py."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from coordinator.engine.core.options import ContextOverflow as ContextOverflow
from coordinator.engine.sampling.constraint import Constraint
from coordinator.engine.sampling.stop_text import StopText, TextMatch
from coordinator.engine.sampling.token_rules import TokenRules
from moe_model.errors import ExpertMeshError
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a sequence ends. Stop tokens, EOS and stop text do not act before `min_tokens` are out.

    max_tokens 0 only scores the prompt. `time_limit` is in seconds since the request's arrival.
    """

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    context_overflow: ContextOverflow = ContextOverflow.STOP
    stop_text: StopText | None = None
    time_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Returns:
    """What a request wants besides tokens. Logprobs: None for none, N for the token's own and the N best."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    routed_experts: bool = False

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every prompt token has to go through the model, cached or not."""
        return self.prompt_logprobs is not None or self.routed_experts


@dataclass(frozen=True, slots=True)
class Request:
    """`num_sequences` continuations of one prompt. `arrival_time` is `time.monotonic()` at its arrival.

    Requests share cached prompt blocks only where `experts` and `cache_salt` are equal. `trace` is handed
    to the engine's observer as it is.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopRules
    num_sequences: int = 1
    returns: Returns = Returns()
    experts: ExpertSelection | None = None
    constraint: Constraint | None = None
    token_rules: TokenRules | None = None
    cache_salt: bytes = b""
    trace: object | None = None
    arrival_time: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logs of the raw distribution: before temperature, penalties, bias, filters and constraint.

    `rank` is 1 for the most likely token; `top` holds (token id, logprob), best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class RoutedExperts:
    """Expert ids of consecutive tokens, `ids_TLK`; `first_position` counts through prompt and output."""

    first_position: int
    ids_TLK: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class PromptDetails:
    """What became known of the prompt; pieces append. `logprobs` leaves out the first token, which has none.

    `num_cached`: prompt tokens that came out of the prefix cache.
    """

    num_cached: int = 0
    logprobs: Sequence[TokenLogprobs] = ()
    routed_experts: tuple[RoutedExperts, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds since arrival: until first scheduled, until the first token, until the end."""

    queue_time: float
    time_to_first_token: float
    total_time: float


@dataclass(frozen=True, slots=True)
class Stop:
    """What a sequence stopped at: a token (EOS or the caller's), or a stop text."""

    token_id: int | None = None
    text: TextMatch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Output:
    """News of one sequence of a request. Its last one carries a finish reason, or an error for the whole
    request, and the timings.

    The EOS or stop token that ended a sequence is its last token here. `logprobs` has one entry per token
    where they were asked for. `prompt` comes with sequence 0 only, in as many pieces as there are.
    """

    request_id: str
    token_ids: Sequence[int] = ()
    finish_reason: FinishReason | None = None
    stop: Stop | None = None
    error: ExpertMeshError | None = None
    timings: RequestTimings | None = None
    index: int = 0
    logprobs: Sequence[TokenLogprobs] = ()
    routed_experts: tuple[RoutedExperts, ...] = ()
    prompt: PromptDetails | None = None

    @property
    def is_last(self) -> bool:
        """Whether this is the last output of its sequence; with an error, of its request."""
        return self.finish_reason is not None or self.error is not None
