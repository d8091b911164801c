"""A request and what comes of it. Plain values; the engine's own bookkeeping is in sequence.py."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from moe_model.errors import ExpertMeshError
from moe_model.sampling import SamplingParams


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"
    ABORT = "abort"


class ContextOverflow(StrEnum):
    """What happens when prompt and output fill the context."""

    STOP = "stop"
    SLIDE = "slide"


@dataclass(frozen=True, slots=True)
class StopRules:
    """When a sequence ends. Stop and EOS tokens do not act before `min_tokens` are out."""

    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    context_overflow: ContextOverflow = ContextOverflow.STOP


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to generate. `arrival_time` is `time.monotonic()` at its arrival."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopRules
    sequence_index: int = 0
    arrival_time: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class RequestTimings:
    """Seconds since arrival: until first scheduled, until the first token, until the end."""

    queue_time: float
    time_to_first_token: float
    total_time: float


@dataclass(frozen=True, slots=True)
class Output:
    """New tokens of a request. The last one carries a finish reason or an error, and the timings.

    The EOS or stop token that ended a sequence is its last token here.
    """

    request_id: str
    token_ids: Sequence[int] = ()
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: ExpertMeshError | None = None
    timings: RequestTimings | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None
