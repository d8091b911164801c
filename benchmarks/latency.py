"""What a client had to wait for: times of single requests, and what they are together."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.light_clients import Trace
from expertmesh.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class Timing:
    """One complete request, in seconds since it was due. `gaps` lie between messages that carry tokens."""

    first_token: float
    per_token: float
    total: float
    gaps: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one kind of waiting, in seconds."""

    p50: float
    p99: float


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` % of them do not exceed; 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def spread(values: Iterable[float]) -> Spread:
    ordered = sorted(values)
    return Spread(percentile(ordered, 50), percentile(ordered, 99))


def timing(trace: Trace, expected_tokens: int) -> Timing:
    """Raises RuntimeError for a stream that is not whole."""
    times, counts = _token_messages(trace)
    if trace.code != "OK" or sum(counts) != expected_tokens:
        raise RuntimeError(f"a request ended {trace.code} with {sum(counts)} of {expected_tokens} tokens")
    later = max(1, expected_tokens - counts[0])
    return Timing(
        first_token=times[0] - trace.due,
        per_token=(times[-1] - times[0]) / later,
        total=trace.ended - trace.due,
        gaps=tuple(after - before for before, after in itertools.pairwise(times)),
        num_tokens=expected_tokens,
    )


def _token_messages(trace: Trace) -> tuple[Sequence[float], Sequence[int]]:
    """When a message with tokens came, and how many it had."""
    times, counts = [], []
    for time, data in trace.messages:
        num_tokens = pb.GenerateStreamResponse.FromString(data).delta.num_tokens
        if num_tokens:
            times.append(time)
            counts.append(num_tokens)
    return times, counts
