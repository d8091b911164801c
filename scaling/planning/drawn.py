"""Steps that a model might make: how many rows each module of a layer has in each of them."""

import numpy as np

from scaling.planning.loads import Floats
from scaling.planning.problem import Ints, Problem


def draw_steps(problem: Problem, num_steps: int, seed: int = 0) -> Ints:
    """[L, steps, E] rows, the same for equal seeds. A row takes K different modules, each with its chance
    (systematic sampling: Madow and Madow, Annals of Mathematical Statistics 15, 1944), all slices of an
    expert alike."""
    rng, num_slices = np.random.default_rng(seed), problem.num_slices
    found = np.zeros((problem.num_layers, num_steps, problem.num_modules), np.int64)
    for layer in range(problem.num_layers):
        chance_E = problem.chance_LE[layer][::num_slices]
        for step in range(num_steps):
            found[layer, step] = np.repeat(_draw(chance_E, problem.num_rows, rng), num_slices)
    return found


def _draw(chance_E: Floats, num_rows: int, rng: np.random.Generator) -> Ints:
    top_k = round(float(chance_E.sum()))
    order_E = rng.permutation(len(chance_E))
    bounds_E = np.cumsum(chance_E[order_E])
    # The last bound is K but for rounding.
    bounds_E[-1] = top_k
    points = (rng.random((num_rows, 1)) + np.arange(top_k)).ravel()
    places = np.searchsorted(bounds_E, points, side="right")
    counts_E = np.zeros(len(chance_E), np.int64)
    counts_E[order_E] = np.bincount(np.minimum(places, len(chance_E) - 1), minlength=len(chance_E))
    return counts_E
