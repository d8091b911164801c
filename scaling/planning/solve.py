"""The best placement that is found: exact where that is possible, else by rule; never worse than the simple
ones, which are among those that it chooses from. Pure but for its limits of time."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from scaling.planning.baselines import longest_first, round_robin
from scaling.planning.bound import bounds
from scaling.planning.drawn import draw_steps
from scaling.planning.evaluate import Evaluator
from scaling.planning.exact import exact
from scaling.planning.greedy import greedy
from scaling.planning.improve import Improver
from scaling.planning.loads import Floats
from scaling.planning.problem import Holders, Problem

SIMPLE: dict[str, Callable[[Problem], Holders]] = {
    "round robin": round_robin,
    "longest first": longest_first,
}
# Drawn steps of a layer: as many as can be computed a few times a second for all of them.
_MOST_STEPS, _EFFORT = 16, 60_000
_IMPROVED = 2


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """`seconds_L`: of each layer's slowest worker, the mean of drawn steps; `bound_L`: of the same, what no
    placement is below; `others`: the sums of `seconds_L` of the simple placements, by their names. `gap`: of
    the exact solver, where it was that."""

    holders: Holders
    seconds_L: Floats
    bound_L: Floats
    costs: dict[int, float]
    fixed_rows: float
    method: str
    gap: float | None = None
    others: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return float(self.seconds_L.sum())

    @property
    def above_bound(self) -> float:
        """By what share of the bound it is above it."""
        return self.seconds / max(float(self.bound_L.sum()), 1e-30) - 1


def solve(
    problem: Problem, *, seconds: float = 10.0, seed: int = 0, known: Holders | None = None
) -> Solution:
    """`seconds` for searching, beside what making the first placements takes. `known`: a placement of the
    same workers that is one to choose from. Raises ConfigError where the copies do not fit."""
    problem.check()
    num_steps = max(2, min(_MOST_STEPS, _EFFORT // (problem.num_layers * problem.num_modules)))
    evaluator = Evaluator.of(problem, draw_steps(problem, num_steps, seed))
    bounds_L = bounds(problem)
    found: dict[str, Holders] = {name: make(problem) for name, make in SIMPLE.items()}
    found["greedy"] = greedy(problem)
    if known is not None:
        found["as it was"] = known
    gap = None
    if (best := exact(problem, seconds / 2)) is not None:
        found["exact for mean loads (HiGHS)"], gap = best.holders, best.gap
    seconds_by = {name: evaluator.layer_seconds(holders) for name, holders in found.items()}
    order = sorted(found, key=lambda name: float(seconds_by[name].sum()))
    # The second best may be improved to more than the best.
    for name in order[:_IMPROVED]:
        better = Improver(evaluator, seconds / 2 / _IMPROVED).improve(found[name], bounds_L)
        found[f"{name}, improved"] = better
        seconds_by[f"{name}, improved"] = evaluator.layer_seconds(better)
    method = min(found, key=lambda name: float(seconds_by[name].sum()))
    return Solution(
        found[method],
        np.asarray(seconds_by[method]),
        bounds_L,
        evaluator.costs,
        evaluator.fixed_rows,
        method,
        gap if method.startswith("exact") else None,
        {name: float(seconds_by[name].sum()) for name in SIMPLE},
    )
