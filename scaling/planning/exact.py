"""The placement that is best for mean loads, by mixed-integer linear programs: for small problems.

    least  sum of T_l   so that for each layer l, module e and worker m
      sum over m of x_lem = 1,  x_lem <= y_lem in {0, 1},  sum over m of y_lem >= copies,
      sum over l, e of y_lem <= room_m,  start_m + sum over e of work_lem x_lem <= T_l

solved by HiGHS (Huangfu and Hall, Parallelizing the dual revised simplex method, Mathematical Programming
Computation 10, 2018) through scipy.optimize.milp. Where all layers together are too many, each is a program
of its own, with its part of the memory that is left.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from scaling.planning.loads import Floats
from scaling.planning.problem import Holders, Ints, Problem

# More variables than these are not tried: HiGHS would not come near the end in its time.
_MOST_TOGETHER, _MOST_OF_LAYER = 240, 1200
_GAP, _LEAST_SECONDS = 0.005, 0.02
# A copy more than are asked for must be worth something.
_COPY = 1e-4


@dataclass(frozen=True, slots=True)
class Exact:
    """`gap`: how far the programs' own goals may be from their best, as a share of it, the largest of them.
    `num_programs`: 1, or as many as there are layers, which share the memory evenly."""

    holders: Holders
    gap: float
    num_programs: int


def exact(problem: Problem, seconds: float) -> Exact | None:
    """None: it is too large, or nothing was found in time."""
    of_layer = problem.num_modules * problem.num_workers
    together = of_layer * problem.num_layers
    work_LEM = np.array([problem.work(layer) for layer in range(problem.num_layers)])
    if together <= _MOST_TOGETHER:
        found = _solved(problem, work_LEM, problem.room_M, seconds)
        return None if found is None else Exact(found[0], found[1], 1)
    if of_layer > _MOST_OF_LAYER or seconds / problem.num_layers < _LEAST_SECONDS:
        return None
    return _layer_by_layer(problem, work_LEM, seconds)


def _layer_by_layer(problem: Problem, work_LEM: Floats, seconds: float) -> Exact | None:
    deadline = time.monotonic() + seconds
    left_M = np.minimum(problem.room_M, problem.num_layers * problem.num_modules)
    holders: Holders = []
    gap = 0.0
    for layer in range(problem.num_layers):
        num_left = problem.num_layers - layer
        limit = (deadline - time.monotonic()) / num_left
        found = None
        if limit > _LEAST_SECONDS / 2:
            found = _solved(problem, work_LEM[layer : layer + 1], -(-left_M // num_left), limit)
        if found is None:
            return None
        holders += found[0]
        gap = max(gap, found[1])
        left_M = left_M - np.bincount(
            [rank for ranks in found[0][0] for rank in ranks], minlength=problem.num_workers
        )
    # Parts are rounded up, so that the last layers may find less.
    return Exact(holders, gap, problem.num_layers) if (left_M >= 0).all() else None


def _solved(problem: Problem, work_LEM: Floats, room_M: Ints, seconds: float) -> tuple[Holders, float] | None:
    num, layers = work_LEM.size, len(work_LEM)
    scale = work_LEM.sum(axis=1).min(axis=1).max()
    goal = np.concatenate([np.zeros(num), np.full(num, _COPY / num), np.ones(layers)])
    found = milp(
        goal,
        integrality=np.concatenate([np.zeros(num), np.ones(num), np.zeros(layers)]),
        bounds=Bounds(0, np.concatenate([np.ones(2 * num), np.full(layers, np.inf)])),
        constraints=_constraints(problem, work_LEM / scale, problem.start_M / scale, room_M),
        options={"time_limit": seconds, "mip_rel_gap": _GAP},
    )
    if found.x is None:
        return None
    is_held_LEM = found.x[num : 2 * num].reshape(work_LEM.shape) > 0.5
    holders: Holders = [
        [tuple(np.flatnonzero(is_held_M).tolist()) for is_held_M in is_held_EM] for is_held_EM in is_held_LEM
    ]
    return holders, float(found.mip_gap)


def _constraints(problem: Problem, work_LEM: Floats, start_M: Floats, room_M: Ints) -> list[LinearConstraint]:
    layers, modules, workers = work_LEM.shape
    num, each = layers * modules * workers, layers * modules
    index = np.arange(num)
    of_module, of_worker = index // workers, index % workers
    of_time = index // (modules * workers) * workers + of_worker
    ones, times = np.ones(num), np.arange(layers * workers)

    def rows(values: list[Any], at: list[Any], columns: list[Any], count: int) -> Any:
        found, rows_of, columns_of = map(np.concatenate, (values, at, columns))
        return csr_array((found, (rows_of, columns_of)), shape=(count, 2 * num + layers))

    spent = rows(
        [work_LEM.ravel(), -np.ones(len(times))],
        [of_time, times],
        [index, 2 * num + times // workers],
        len(times),
    )
    return [
        LinearConstraint(rows([ones], [of_module], [index], each), 1, 1),
        LinearConstraint(rows([ones, -ones], [index, index], [index, num + index], num), -np.inf, 0),
        LinearConstraint(rows([ones], [of_module], [num + index], each), problem.num_copies, np.inf),
        LinearConstraint(rows([ones], [of_worker], [num + index], workers), 0, room_M),
        LinearConstraint(spent, -np.inf, -np.tile(start_M, layers)),
    ]
