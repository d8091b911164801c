"""How many parts of a step are in flight at once: by measuring, as it pays only where the engine would wait.

While one part is at the experts the next is in attention; for that, every part reads the weights again. Which
weighs more depends on the model, the batch, the machines and the network.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

# Steps that each choice is tried for, then how many are run before the other is tried again.
NUM_TRIED = 5
NUM_BETWEEN = 400
# A choice must be better by so much to take the place of the one in use: the measure is noisy.
MARGIN = 0.03
# Below, half of a step is no work at all.
MIN_TOKENS = 4


@dataclass(slots=True)
class _Size:
    """Steps of about one size. `seconds` are those per token of each choice, as last tried."""

    chosen: int = 1
    num_steps: int = 0
    seconds: dict[int, list[float]] = field(default_factory=lambda: {1: [], 2: []})


class Overlap:
    """Tries one part and two, for steps of each size by themselves, and again from time to time.

    `num_parts`: None chooses, a number is what is used. Belongs to the engine's thread.
    """

    def __init__(self, num_parts: int | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._fixed = num_parts
        self._clock = clock
        self._sizes: dict[int, _Size] = {}

    @contextmanager
    def timed(self, num_tokens: int) -> Iterator[int]:
        """How many parts the step inside is to have. A step that raises is not counted."""
        if self._fixed is not None:
            yield self._fixed
            return
        if num_tokens < MIN_TOKENS:
            yield 1
            return
        size = self._sizes.setdefault(num_tokens.bit_length(), _Size())
        num_parts = _next(size)
        started = self._clock()
        yield num_parts
        _record(size, num_parts, (self._clock() - started) / num_tokens)

    def chosen(self, num_tokens: int) -> int:
        """What steps of this size have at the moment."""
        if self._fixed is not None:
            return self._fixed
        size = self._sizes.get(num_tokens.bit_length())
        return 1 if size is None else size.chosen


def _next(size: _Size) -> int:
    """The choices in turn while they are tried, so that a slow minute falls on both."""
    turn = size.num_steps % NUM_BETWEEN
    return 1 + turn % 2 if turn < 2 * NUM_TRIED else size.chosen


def _record(size: _Size, num_parts: int, seconds: float) -> None:
    turn = size.num_steps % NUM_BETWEEN
    size.num_steps += 1
    if turn >= 2 * NUM_TRIED:
        return
    size.seconds[num_parts].append(seconds)
    if turn == 2 * NUM_TRIED - 1:
        other = 3 - size.chosen
        if median(size.seconds[other]) < (1 - MARGIN) * median(size.seconds[size.chosen]):
            size.chosen = other
        for tried in size.seconds.values():
            tried.clear()
