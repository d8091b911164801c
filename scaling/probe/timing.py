"""Seconds of short work on a machine that may have other work: a low quantile of many pieces."""

import time
from collections.abc import Callable, Sequence
from typing import Any

# Of the pieces of a measurement, those above it were disturbed.
QUANTILE = 0.1
_MIN_PIECES = 4
# A piece is so long that the clock's own time does not show in it.
_PIECE_S = 1e-3


def quantile(values: Sequence[float], share: float = QUANTILE) -> float:
    """The value below which about this share lies, one of those that there are."""
    return sorted(values)[int(share * (len(values) - 1))]


def seconds_each(calls: Sequence[Callable[[], Any]], budget_s: float) -> float:
    """Of a call, called in turns and again from the first: what the first has read is then in no cache, if
    all together read more than that holds. Takes `budget_s`, or as long as five pieces take."""
    started = time.perf_counter()
    calls[0]()
    once = time.perf_counter() - started
    each = max(1, min(1000, int(_PIECE_S / max(once, 1e-7))))
    found: list[float] = []
    place = 0
    end = time.perf_counter() + budget_s
    while len(found) < _MIN_PIECES or time.perf_counter() < end:
        turn = [calls[(place + index) % len(calls)] for index in range(each)]
        place += each
        before = time.perf_counter()
        for call in turn:
            call()
        found.append((time.perf_counter() - before) / each)
    return quantile(found)
