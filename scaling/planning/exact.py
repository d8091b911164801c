"""The placement that is best for mean loads, by a mixed-integer linear program: for small problems.

    least  sum of T_l   so that for each layer l, module e and worker m
      sum over m of x_lem = 1,  x_lem <= y_lem in {0, 1},  sum over m of y_lem >= copies,
      sum over l, e of y_lem <= room_m,  sum over e of work_lem x_lem <= T_l

solved by HiGHS (Huangfu and Hall, Parallelizing the dual revised simplex method, Mathematical Programming
Computation 10, 2018) through scipy.optimize.milp.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from scaling.planning.problem import Holders, Problem

# More than these are not tried: HiGHS would not come near the end in its time.
MOST_VARIABLES = 3000
# A copy more than are asked for must be worth something.
_COPY = 1e-4


@dataclass(frozen=True, slots=True)
class Exact:
    """`gap`: how far the program's own goal may be from the best, as a share of it."""

    holders: Holders
    gap: float


def num_variables(problem: Problem) -> int:
    return problem.num_layers * problem.num_modules * problem.num_workers


def exact(problem: Problem, seconds: float) -> Exact | None:
    """None: it is too large, or nothing was found in time."""
    num = num_variables(problem)
    if num > MOST_VARIABLES:
        return None
    work_LEM = np.array([problem.work_EM(layer) for layer in range(problem.num_layers)])
    scale = work_LEM.sum(axis=1).min(axis=1).max()
    work_LEM = work_LEM / scale
    goal = np.concatenate([np.zeros(num), np.full(num, _COPY / num), np.ones(problem.num_layers)])
    found = milp(
        goal,
        integrality=np.concatenate([np.zeros(num), np.ones(num), np.zeros(problem.num_layers)]),
        bounds=Bounds(0, np.concatenate([np.ones(2 * num), np.full(problem.num_layers, np.inf)])),
        constraints=_constraints(problem, work_LEM),
        options={"time_limit": seconds, "mip_rel_gap": 0.005},
    )
    if found.x is None:
        return None
    is_held_LEM = found.x[num : 2 * num].reshape(work_LEM.shape) > 0.5
    holders: Holders = [
        [tuple(np.flatnonzero(is_held_M).tolist()) for is_held_M in is_held_EM] for is_held_EM in is_held_LEM
    ]
    return Exact(holders, float(found.mip_gap))


def _constraints(problem: Problem, work_LEM: np.ndarray) -> list[LinearConstraint]:  # type: ignore[type-arg]
    layers, modules, workers = work_LEM.shape
    num, each = layers * modules * workers, layers * modules
    width = 2 * num + layers
    index = np.arange(num)
    of_module, of_worker, of_layer = index // workers, index % workers, index // (modules * workers)
    ones = np.ones(num)

    def rows(
        values: list[np.ndarray], at: list[np.ndarray], columns: list[np.ndarray], count: int
    ) -> csr_array:  # type: ignore[type-arg]
        parts = tuple(map(np.concatenate, (values, at, columns)))
        return csr_array((parts[0], (parts[1], parts[2])), shape=(count, width))

    spent = [work_LEM.ravel(), -np.ones(layers)]
    spent_at, spent_by = [of_layer, np.arange(layers)], [index, 2 * num + np.arange(layers)]
    return [
        LinearConstraint(rows([ones], [of_module], [index], each), 1, 1),
        LinearConstraint(rows([ones, -ones], [index, index], [index, num + index], num), -np.inf, 0),
        LinearConstraint(rows([ones], [of_module], [num + index], each), problem.num_copies, np.inf),
        LinearConstraint(rows([ones], [of_worker], [num + index], workers), 0, problem.room_M),
        LinearConstraint(rows(spent, spent_at, spent_by, layers), -np.inf, 0),
    ]
