"""Whether sequences draft: by measuring, as it pays only where a step with more rows costs less than the
steps that it saves.

A drafted token that is not the one that is drawn is computed for nothing. How many are and what they cost
depends on the text, the model, the batch, the machines and the network.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean, median

# Steps with drafts, and without, that a trial has of each; then how many are run before the next trial.
NUM_TRIED = 5
NUM_BETWEEN = 150
# Each time that drafts were found not to pay, twice as many are run, up to so many: a large batch pays for
# each step that has them.
MOST_BETWEEN = 16 * NUM_BETWEEN
# Steps with drafts that tell how many tokens one gives: these vary more than their time.
NUM_YIELDS = 64
# One must be better by so much to take the place of the other: the measure is noisy.
MARGIN = 0.05
# So many steps have no drafts after one that failed: it may have failed for what was only drafted.
NUM_AFTER_FAILURE = 100


@dataclass(slots=True)
class _Size:
    """Steps of about as many sequences. `seconds` are those of the trial, `yields` the tokens of a step with
    drafts over those of one without."""

    drafts: bool = False
    num_left: int = 0
    num_between: int = NUM_BETWEEN
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})
    yields: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_YIELDS))


class Speculation:
    """Tries steps with drafts and without, by number of sequences, and again from time to time.

    `most`: tokens that a sequence drafts for one step. `is_measured` False: it always does. Belongs to the
    engine's thread.
    """

    def __init__(self, most: int, *, is_measured: bool = True) -> None:
        self.most = most
        self._is_measured = is_measured
        self._sizes: dict[int, _Size] = {}
        self._num_silent = 0

    def wanted(self, num_sequences: int) -> bool:
        """Whether the next step, of so many sequences, is to have drafts."""
        if self._num_silent:
            self._num_silent -= 1
            return False
        if not self._is_measured:
            return True
        size = self._size(num_sequences)
        if size.num_left:
            return size.drafts
        # In turn, so that a slow minute falls on both.
        return len(size.seconds[True]) <= len(size.seconds[False])

    def ran(self, num_sequences: int, num_tokens: int, seconds: float, *, is_drafted: bool) -> None:
        """A step of so many sequences, and of no prefill, gave so many tokens. A step that wanted drafts and
        had none is one without."""
        size = self._size(num_sequences)
        if is_drafted:
            size.yields.append(num_tokens / num_sequences)
        if size.num_left:
            size.num_left -= 1
            return
        tried = size.seconds
        # Where nothing can be drafted the trial goes on, and costs nothing.
        tried[is_drafted] = [*tried[is_drafted], seconds][-NUM_TRIED:]
        if all(len(each) == NUM_TRIED for each in tried.values()):
            gain = fmean(size.yields) * median(tried[False]) / median(tried[True])
            size.drafts = gain > (1 - MARGIN if size.drafts else 1 + MARGIN)
            size.num_left = size.num_between
            size.num_between = NUM_BETWEEN if size.drafts else min(2 * size.num_between, MOST_BETWEEN)
            tried[False], tried[True] = [], []

    def failed(self) -> None:
        """A step failed."""
        self._num_silent = NUM_AFTER_FAILURE

    def chosen(self, num_sequences: int) -> bool:
        """What was measured to be better by the last trial."""
        return not self._is_measured or self._size(num_sequences).drafts

    def _size(self, num_sequences: int) -> _Size:
        return self._sizes.setdefault(num_sequences.bit_length(), _Size())
