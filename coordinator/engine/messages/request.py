"""A request: what a caller wants of an engine. Plain data, which survives encoding.

Live objects are made on the engine's side (core/prepared.py): a constraint's matcher, the bytes of tokens.
"""

import time
from dataclasses import dataclass, field

from coordinator.engine.options import ContextOverflow as ContextOverflow
from moe_model.layers.expert_selection import ExpertSelection
from moe_model.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class StopText:
    """The stop sequences of a request, as UTF-8, over the text that its caller sees: with or without the
    special tokens."""

    sequences: tuple[bytes, ...]
    skip_special_tokens: bool = True


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
class FreePart:
    """What of an output is free before its constraint. A thought between `think_begin` and `think_end`, with
    which the output may begin, or does where the prompt has begun it (`is_thinking`); then, where `until` is
    not empty, all that comes before this mark, if it comes."""

    think_begin: str = ""
    think_end: str = ""
    is_thinking: bool = False
    until: str = ""


@dataclass(frozen=True, slots=True)
class ConstraintSource:
    """What an output must be, as its caller wrote it. `texts`: the choices, or the one schema, expression or
    grammar; `compact_json`: JSON without white space; `free`: what comes before it."""

    kind: str
    texts: tuple[str, ...]
    compact_json: bool = False
    free: FreePart = FreePart()


@dataclass(frozen=True, slots=True)
class TokenRules:
    """`allowed` are the only ids that may be drawn, none stand for all. No sequence of `forbidden` ever
    stands in the output. `ends` are left as a constraint has them: it alone says where the output may end."""

    allowed: tuple[int, ...] = ()
    forbidden: tuple[tuple[int, ...], ...] = ()
    ends: tuple[int, ...] = ()

    def leave_some(self, vocab_size: int) -> bool:
        """Whether an output can begin, as far as these rules go."""
        banned = {sequence[0] for sequence in self.forbidden if len(sequence) == 1}
        if self.ends:
            return True
        return not banned.issuperset(self.allowed) if self.allowed else len(banned) < vocab_size


@dataclass(frozen=True, slots=True)
class Request:
    """`num_sequences` continuations of one prompt. `arrival_time` is `time.monotonic()` at its arrival, a
    clock that all processes of a machine share.

    Requests share cached prompt blocks only where `experts` and `cache_salt` are equal. `trace` is the number
    by which the observer of the steps knows the request; None: not traced.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopRules
    num_sequences: int = 1
    returns: Returns = Returns()
    experts: ExpertSelection | None = None
    constraint: ConstraintSource | None = None
    token_rules: TokenRules | None = None
    cache_salt: bytes = b""
    trace: int | None = None
    arrival_time: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Abort:
    """Ends a request before the next step; nothing happens when it is not running."""

    request_id: str
