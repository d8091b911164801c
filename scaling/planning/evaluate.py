"""What a placement takes, by asking the product's own dispatch which holder computes which module.

Shapes as in problem.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expert_workers.dispatch.assign import assign
from scaling.planning.loads import Floats
from scaling.planning.problem import Holders, Ints, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Evaluator:
    """`drawn`: [L, steps, E] rows of some steps. `costs`, by worker, and `fixed_rows` are what the dispatch
    is told of the workers."""

    problem: Problem
    drawn: Ints
    costs: dict[int, float]
    fixed_rows: float

    @classmethod
    def of(cls, problem: Problem, drawn: Ints) -> "Evaluator":
        costs = dict(enumerate(problem.costs().tolist()))
        return cls(problem, drawn, costs, problem.fixed_rows)

    def chosen(self, holders_E: Sequence[tuple[int, ...]], rows_E: Sequence[int]) -> Ints:
        """[E] the worker that computes each module, by `assign`; -1: it has no rows."""
        found = np.full(len(rows_E), -1, np.int64)
        num_slices = self.problem.num_slices
        # Slices of one number are a dispatch of their own, which knows nothing of the others.
        for part in range(num_slices):
            segments, lost = assign(
                holders_E[part::num_slices], rows_E[part::num_slices], self.costs, self.fixed_rows
            )
            assert not lost, "every module has a holder"
            for rank, columns in segments.items():
                found[[column * num_slices + part for column, _ in columns]] = rank
        return found

    def worker_times(self, layer: int, step: int, holders_E: Sequence[tuple[int, ...]]) -> Floats:
        """Seconds of each worker for one layer of one drawn step."""
        rows_E = self.drawn[layer, step]
        chosen_E = self.chosen(holders_E, rows_E.tolist())
        used = chosen_E >= 0
        seconds = self.problem.times(rows_E[used].astype(float), self.problem.kind_M[chosen_E[used]])
        found = np.bincount(chosen_E[used], seconds, self.problem.num_workers)
        return np.where(found > 0, found + self.problem.start_M, 0.0)

    def layer(self, layer: int, holders_E: Sequence[tuple[int, ...]]) -> float:
        """Seconds of a layer's slowest worker, mean of the drawn steps."""
        num_steps = self.drawn.shape[1]
        return float(np.mean([self.worker_times(layer, step, holders_E).max() for step in range(num_steps)]))

    def layer_seconds(self, holders: Holders) -> Floats:
        """Of each layer."""
        return np.array([self.layer(layer, holders[layer]) for layer in range(self.problem.num_layers)])
