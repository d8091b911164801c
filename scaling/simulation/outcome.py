"""What a simulated load gave: the same figures as a measured one has."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct

from scaling.observation import QUANTILES, Spread
from scaling.simulation.split import Split


@dataclass
class Served:
    """One request, in seconds of the simulation."""

    num_prompt: int
    sent_s: float
    token_s: list[float] = field(default_factory=list)
    failed: bool = False


class Outcome(Struct, frozen=True):
    """`split_ms`: of a mean step; `dispatch` and `combine` as a server's metrics have them, and `rest`.
    `shares`: of the whole time of steps, finer. `binds`: a few words."""

    seconds: float
    num_requests: int
    num_failed: int
    num_tokens: int
    tokens_per_s: float
    first_token_ms: Spread | None
    gap_ms: Spread | None
    max_gap_ms: float
    step_ms: float
    num_steps: int
    split_ms: dict[str, float]
    shares: dict[str, float]
    binds: str
    bytes_sent: float
    bytes_received: float
    num_hedged: int = 0
    num_retried: int = 0
    num_pairs: int = 0


def spread(values: Sequence[float]) -> Spread | None:
    """None of nothing."""
    if not values:
        return None
    quantiles = tuple(float(value) for value in np.percentile(values, QUANTILES))
    return Spread(float(np.mean(values)), quantiles, len(values))


def gaps_ms(served: Sequence[Served]) -> list[float]:
    return [
        1e3 * (later - sooner)
        for request in served
        for sooner, later in zip(request.token_s, request.token_s[1:], strict=False)
    ]


def split_ms(split: Split, num_steps: int) -> dict[str, float]:
    """By the parts that an observation has; their sum is the step."""
    dispatch = split.calls + split.link + split.delay + split.queue + split.experts
    rest = split.step + split.shared + split.head + split.experts_here + split.lost
    parts = {"dispatch": dispatch, "combine": split.combine, "rest": rest}
    return {name: 1e3 * seconds / max(1, num_steps) for name, seconds in parts.items()}
