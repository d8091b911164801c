"""Waits and rates of histories, during the faults and outside them. Pure; all in seconds."""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from chaos.history import Stream

# Upper ends of the gap histogram; the last has none.
BOUNDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of waits; None where there were none."""

    count: int
    p50: float | None
    p99: float | None
    longest: float | None


@dataclass(frozen=True, slots=True)
class Measures:
    """One side: what was seen during the faults, or outside them."""

    gaps: Spread
    first_tokens: Spread
    tokens_per_second: float | None
    histogram: tuple[int, ...]


def merged(spans: Iterable[Span]) -> list[Span]:
    """In order and without overlaps."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


class Windows:
    """When there was a fault: from its injection until all was as before."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = merged(spans)
        self._ends = [end for _, end in self._spans]

    def touches(self, begin: float, end: float) -> bool:
        """Whether a wait has a part in one of them."""
        index = bisect.bisect_left(self._ends, begin)
        return index < len(self._spans) and self._spans[index][0] <= end

    def seconds(self, begin: float, end: float) -> float:
        """How much of [begin, end] is theirs."""
        return sum(max(0.0, min(end, e) - max(begin, b)) for b, e in self._spans)


def spread(waits: Iterable[float]) -> Spread:
    found = sorted(waits)
    if not found:
        return Spread(0, None, None, None)
    return Spread(len(found), percentile(found, 0.5), percentile(found, 0.99), found[-1])


def percentile(ordered: Sequence[float], part: float) -> float:
    """The smallest value that is not below `part` of all."""
    return ordered[min(len(ordered) - 1, max(0, -int(-part * len(ordered) // 1) - 1))]


def histogram(waits: Iterable[float]) -> tuple[int, ...]:
    counts = [0] * (len(BOUNDS) + 1)
    for wait in waits:
        counts[bisect.bisect_left(BOUNDS, wait)] += 1
    return tuple(counts)


def measure(streams: Sequence[Stream], windows: Windows, load: Span) -> tuple[Measures, Measures]:
    """During the windows and outside. `load` is when requests were sent: rates count what came in it."""
    sides: tuple[list[float], list[float]] = ([], [])
    firsts: tuple[list[float], list[float]] = ([], [])
    tokens = [0, 0]
    for stream in streams:
        for begin, end in stream.gaps:
            sides[not windows.touches(begin, end)].append(end - begin)
        if stream.first_wait is not None:
            begin, end = stream.first_wait
            firsts[not windows.touches(begin, end)].append(end - begin)
        for at in stream.times:
            if load[0] <= at <= load[1]:
                tokens[not windows.touches(at, at)] += 1
    inside = windows.seconds(*load)
    seconds = (inside, load[1] - load[0] - inside)
    during, outside = (
        Measures(
            spread(sides[side]),
            spread(firsts[side]),
            tokens[side] / seconds[side] if seconds[side] > 0 else None,
            histogram(sides[side]),
        )
        for side in (0, 1)
    )
    return during, outside
