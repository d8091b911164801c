"""What the benchmark and its peers say to each other: plain values, one JSON line each.

Both environments import this module, so it knows nothing but the standard library.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Ids below it are special in ModularForge's vocabulary: padding, unknown, begin, end.
FIRST_PLAIN_ID = 4


@dataclass(frozen=True, slots=True)
class Load:
    """`batch` sequences at once, all of the same lengths."""

    batch: int
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds until every sequence has its first token, and from there to the end."""

    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class Probe:
    """What a peer computes for one prompt: the logits after it, and the greedy continuation."""

    logits_V: Sequence[float]
    token_ids: Sequence[int]


def prompt_ids(index: int, num_tokens: int, vocab_size: int) -> list[int]:
    """The prompt of one sequence; `benchmarks.engine` gives ours the same."""
    return [(37 * index + 11 * i) % (vocab_size - FIRST_PLAIN_ID) + FIRST_PLAIN_ID for i in range(num_tokens)]
