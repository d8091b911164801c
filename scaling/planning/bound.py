"""How quick a step's experts can be at best: a bound that no placement beats. Pure.

For any weights of the workers that add up to 1, the slowest takes at least the weighted mean of all, and this
at least what the modules take where the weighted cost of each is least: the dual of the linear program in
which modules may be cut into parts of any size and memory has no end.
"""

import numpy as np

from scaling.planning.loads import Floats
from scaling.planning.problem import Problem

_STEPS = 60


def bounds(problem: Problem) -> Floats:
    """Seconds, of each layer's slowest worker in a mean step. The dual is raised by some steps of the
    multiplicative subgradient; a module also goes to one worker whole."""
    found = np.zeros(problem.num_layers)
    num_K = np.bincount(problem.kind_M, minlength=len(problem.table_KG)).astype(np.float64)
    for layer in range(problem.num_layers):
        work_EK = problem.kind_work(layer)
        whole = float(work_EK.min(axis=1).max())
        found[layer] = max(whole, _dual(work_EK, num_K)) + float(problem.start_M.min())
    return found


def _dual(work_EK: Floats, num_K: Floats) -> float:
    """Workers of one kind have the same weight, so a kind is one column with a number."""
    kinds_EK, num_K = work_EK[:, num_K > 0], num_K[num_K > 0]
    weight_K = num_K / kinds_EK.sum(axis=0)
    weight_K /= weight_K.sum()
    best = 0.0
    for step in range(_STEPS if len(num_K) > 1 else 1):
        cost_EK = kinds_EK * (weight_K / num_K)[None, :]
        least_E = cost_EK.argmin(axis=1)
        best = max(best, float(cost_EK.min(axis=1).sum()))
        time_K = np.bincount(least_E, kinds_EK[np.arange(len(least_E)), least_E], len(num_K)) / num_K
        weight_K = weight_K * np.exp(0.5 / (1 + step) * (time_K / max(time_K.max(), 1e-30) - 0.5))
        weight_K /= weight_K.sum()
    return best
