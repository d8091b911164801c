"""What a step takes on this machine with this model, learned from the steps that were run. Pure.

    seconds = any step + single tokens + tokens of prefill + what all of them look at

with a coefficient each, none of them negative. Steps that are much alike are one kind and remembered as one,
so that a kind that has not come for long still counts when thousands of another have.

Shapes: K kinds of steps, F terms.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Kinds that are remembered, and the number of later steps with prefill after which one counts half.
MAX_KINDS, HALF_LIFE = 64, 48
# How far a step moves what is known of its kind, and how many times as slow as that it may count: a
# machine pauses, and what lasts comes again.
MOVES, MOST_SLOW = 1 / 8, 2.0
# Steps between two times that the coefficients are worked out, unless one was of a kind that is hardly known.
STEPS_PER_FIT = 16
# The coefficients begin with those found before, so few sweeps do; the ridge keeps those that the steps
# cannot tell apart from growing.
NUM_SWEEPS, RIDGE = 20, 1e-6


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step computes: single tokens and longer chunks, and how many positions they look at in sum."""

    singles: int = 0
    singles_seen: int = 0
    prefill: int = 0
    prefill_seen: int = 0

    @staticmethod
    def of(chunks: Iterable[tuple[int, int]]) -> "StepLoad":
        """Of the first position and the number of tokens of each chunk."""
        singles = singles_seen = prefill = prefill_seen = 0
        for start, num_tokens in chunks:
            if num_tokens == 1:
                singles += 1
                singles_seen += start + 1
            else:
                prefill += num_tokens
                prefill_seen += positions_seen(start, num_tokens)
        return StepLoad(singles, singles_seen, prefill, prefill_seen)

    def with_prefill(self, start: int, num_tokens: int) -> "StepLoad":
        """And so many tokens more, from position `start` on."""
        seen = self.prefill_seen + positions_seen(start, num_tokens)
        return StepLoad(self.singles, self.singles_seen, self.prefill + num_tokens, seen)

    @property
    def kind(self) -> tuple[int, int, int, int]:
        """Equal where each number is the same but for a factor of less than two."""
        return (
            self.singles.bit_length(),
            self.singles_seen.bit_length(),
            self.prefill.bit_length(),
            self.prefill_seen.bit_length(),
        )

    @property
    def terms(self) -> tuple[float, float, float, float]:
        """What each coefficient is of. Where it is not known what a step's time was for, the first has it."""
        return self.prefill, self.prefill_seen + self.singles_seen, 1.0, self.singles


def positions_seen(start: int, num_tokens: int) -> int:
    """By so many tokens from position `start` on, each of which looks at itself and all before it."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2


@dataclass(slots=True)
class _Kind:
    """Means over its steps, the latest count most. `seen_at` counts steps with prefill."""

    terms: tuple[float, ...]
    seconds: float
    seen_at: int
    num_steps: int = 1

    def add(self, terms: tuple[float, ...], seconds: float, seen_at: int) -> None:
        self.num_steps += 1
        gain = max(MOVES, 1 / self.num_steps)
        self.seconds += gain * (min(seconds, MOST_SLOW * self.seconds) - self.seconds)
        self.terms = tuple(mean + gain * (new - mean) for mean, new in zip(self.terms, terms, strict=True))
        self.seen_at = seen_at


class StepCosts:
    """Learns with every step; what it has learned is worked out when it is asked, every few steps."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, int, int, int], _Kind] = {}
        self._num_prefills = 0
        self._coefficients = [0.0] * len(StepLoad().terms)
        self._steps_to_fit = STEPS_PER_FIT

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A step of this load took so long, which is more than nothing."""
        self._num_prefills += load.prefill > 0
        self._steps_to_fit -= 1
        self._remember(load, seconds)

    def seconds(self, load: StepLoad) -> float:
        """What a step of this load would take; 0 when nothing is known."""
        self._fit()
        return sum(c * term for c, term in zip(self._coefficients, load.terms, strict=True))

    @property
    def per_token(self) -> float:
        """Seconds of a token of prefill."""
        self._fit()
        return self._coefficients[0]

    @property
    def per_position(self) -> float:
        """Seconds of a position that a token looks at."""
        self._fit()
        return self._coefficients[1]

    def _remember(self, load: StepLoad, seconds: float) -> None:
        kind = self._kinds.pop(load.kind, None)
        if kind is None:
            kind = _Kind(load.terms, seconds, self._num_prefills)
            if len(self._kinds) == MAX_KINDS:
                del self._kinds[next(iter(self._kinds))]
        else:
            kind.add(load.terms, seconds, self._num_prefills)
        # The one that came last stands last.
        self._kinds[load.kind] = kind
        if kind.num_steps < 1 / MOVES:
            self._steps_to_fit = 0

    def _fit(self) -> None:
        """The least squares of the relative errors, by coordinate descent."""
        if self._steps_to_fit > 0:
            return
        kinds = self._kinds.values()
        terms_KF = np.array([kind.terms for kind in kinds])
        seconds_K = np.array([kind.seconds for kind in kinds])
        ages_K = self._num_prefills - np.array([kind.seen_at for kind in kinds])
        known_K = np.array([min(1.0, MOVES * kind.num_steps) for kind in kinds])
        weights_K = np.sqrt(known_K * np.exp2(-ages_K / HALF_LIFE)) / seconds_K
        terms_KF = terms_KF * weights_K[:, None]
        norms_F = np.sqrt((terms_KF**2).sum(axis=0))
        # What no step had costs nothing, as far as is known.
        norms_F[norms_F == 0] = np.inf
        terms_KF /= norms_F
        products = (terms_KF.T @ terms_KF).tolist()
        wanted = (terms_KF.T @ (seconds_K * weights_K)).tolist()
        begun_F = np.array(self._coefficients) * np.where(np.isfinite(norms_F), norms_F, 0)
        found_F = np.array(_not_negative(products, wanted, begun_F.tolist()))
        self._coefficients = (found_F / norms_F).tolist()
        self._steps_to_fit = STEPS_PER_FIT


def _not_negative(products: list[list[float]], wanted: list[float], begun: list[float]) -> list[float]:
    """Solves products @ x = wanted for x >= 0 as well as it can be, from a first guess on."""
    found = begun
    for _ in range(NUM_SWEEPS):
        for place, row in enumerate(products):
            error = wanted[place] - sum(a * b for a, b in zip(row, found, strict=True))
            found[place] = max(0.0, (error + row[place] * found[place]) / (row[place] + RIDGE))
    return found
