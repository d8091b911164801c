"""How much prefill a step has beside running streams, so that these do not wait too long for it. Pure.

A stream waits for as long as a step takes: the bound holds for steps with single tokens. What such a step
will take is known from those before it, of any machine and model.
"""

import math

from coordinator.engine.core.step_costs import StepCosts, StepLoad, positions_seen

# A step with prefill may always take so many times as long as its streams alone: else prompts would hardly
# get on where these take as long as the bound.
TIMES_STREAMS = 2.0
# A step's prefill looks at no more than so many times the positions that any did before: what they cost may
# not have shown yet.
TIMES_SEEN = 2
# How fast the mean of actual to expected time follows, and its deviation, and how many deviations are kept as
# room: TCP's way with its timeouts (Jacobson, "Congestion avoidance and control", 1988).
MEAN_GAIN, DEVIATION_GAIN, ROOM = 1 / 8, 1 / 4, 2.0
# A step that was later than so many times what was expected counts as one that was just as late as that.
MOST_LATE = 2.0
# More tokens than any step has.
UNBOUNDED = 1 << 31


class Pace:
    """Learns what steps take, and shares their time out. `max_gap` is in seconds."""

    def __init__(self, max_gap: float, block_size: int) -> None:
        self._max_gap = max_gap
        self._block_size = block_size
        self._costs = StepCosts()
        self._most_seen = 0
        self._mean, self._deviation = 1.0, 0.0

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step of this load took so long."""
        expected = self._costs.seconds(load) if load.singles and load.prefill else 0.0
        if expected:
            ratio = min(MOST_LATE, seconds / expected)
            self._deviation += DEVIATION_GAIN * (abs(ratio - self._mean) - self._deviation)
            self._mean += MEAN_GAIN * (ratio - self._mean)
        self._costs.observe(load, seconds)
        self._most_seen = max(self._most_seen, load.prefill_seen)

    def share(self, singles: StepLoad) -> "Share":
        """For the prefill of one step beside these single tokens."""
        streams = self._costs.seconds(singles)
        longest = max(self._max_gap / max(1.0, self._mean + ROOM * self._deviation), TIMES_STREAMS * streams)
        return Share(self._costs, longest - streams, TIMES_SEEN * self._most_seen, self._block_size)


class Share:
    """The time of one step. Chunks come in the order in which they are to have it."""

    def __init__(self, costs: StepCosts, seconds: float, most_seen: int, block_size: int) -> None:
        self._per_token, self._per_position = costs.per_token, costs.per_position
        self._seconds_left = seconds
        self._seen_left = float(most_seen)
        self._block_size = block_size
        self._is_first = True

    def take(self, start: int, num_remaining: int) -> int:
        """How many tokens from position `start` on are in the step, of those that remain; 0: no time is left.

        No chunk is shorter than a block but a last one; the first chunk is there whatever it takes.
        """
        by_time = _most_tokens(start, self._seconds_left, self._per_token, self._per_position)
        num_tokens = min(num_remaining, by_time, _most_tokens(start, self._seen_left, 0.0, 1.0))
        least = min(self._block_size, num_remaining)
        if num_tokens < least:
            if not self._is_first:
                return 0
            num_tokens = least
        self._is_first = False
        num_seen = positions_seen(start, num_tokens)
        self._seen_left -= num_seen
        self._seconds_left -= num_tokens * self._per_token + num_seen * self._per_position
        return num_tokens


def _most_tokens(start: int, most: float, per_token: float, per_position: float) -> int:
    """The most tokens from position `start` on that cost at most so much.

    The positive root n of n * per_token + positions_seen(start, n) * per_position = most.
    """
    if most <= 0:
        return 0
    linear = per_token + per_position * (start + 0.5)
    if linear <= 0:
        return UNBOUNDED
    return int(min(UNBOUNDED, 2 * most / (linear + math.sqrt(linear * linear + 2 * per_position * most))))
