"""What comes of a request. Plain data, which survives encoding.

Shapes: T tokens, L layers, K experts per token.
"""

from dataclasses import dataclass
from enum import StrEnum

import msgspec
import numpy as np

from coordinator.engine.messages.failure import Failure
from moe_model.errors import ExpertMeshError


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"
    ABORT = "abort"


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

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoutedExperts):
            return NotImplemented
        mine, theirs = self.ids_TLK, other.ids_TLK
        same_kind = self.first_position == other.first_position and mine.dtype == theirs.dtype
        return same_kind and np.array_equal(mine, theirs)

    # Arrays have no hash.
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class PromptDetails:
    """What became known of the prompt; pieces append. `logprobs` leaves out the first token, which has none.

    `num_cached`: prompt tokens that came out of the prefix cache.
    """

    num_cached: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    routed_experts: tuple[RoutedExperts, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds since arrival: until first scheduled, until the first token, until the end."""

    queue_time: float
    time_to_first_token: float
    total_time: float


@dataclass(frozen=True, slots=True)
class TextMatch:
    """A stop sequence that was completed, and how many bytes its last token wrote after it."""

    text: bytes
    num_after: int


@dataclass(frozen=True, slots=True)
class Stop:
    """What a sequence stopped at: a token (EOS or the caller's), or a stop text."""

    token_id: int | None = None
    text: TextMatch | None = None


class Output(msgspec.Struct, frozen=True, gc=False):
    """News of one sequence of a request. Its last one carries a finish reason, or a failure of the whole
    request, and the timings. Every token makes one, and a dataclass takes 16 times as long to be made.

    The EOS or stop token that ended a sequence is its last token here. `logprobs` has one entry per token
    where they were asked for. `prompt` comes with sequence 0 only, in as many pieces as there are.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stop: Stop | None = None
    failure: Failure | None = None
    timings: RequestTimings | None = None
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    routed_experts: tuple[RoutedExperts, ...] = ()
    prompt: PromptDetails | None = None

    @property
    def error(self) -> ExpertMeshError | None:
        """The failure as an exception, new each time: one failure may end many requests."""
        return None if self.failure is None else self.failure.error()

    @property
    def only_token(self) -> int | None:
        """The token, where one token is all that there is to tell; nearly all outputs are so."""
        if len(self.token_ids) != 1 or self.is_last or self.logprobs or self.routed_experts or self.prompt:
            return None
        return self.token_ids[0]

    @property
    def is_last(self) -> bool:
        """Whether this is the last output of its sequence; with a failure, of its request."""
        return self.finish_reason is not None or self.failure is not None
