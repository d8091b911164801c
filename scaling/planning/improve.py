"""Moves and exchanges that make a layer's slowest worker quicker, one after the other, until none is found.

Each is tried on the drawn steps with the product's own dispatch (evaluate.py), and kept where it helps.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scaling.planning.evaluate import Evaluator
from scaling.planning.loads import Floats
from scaling.planning.problem import Holders, Ints

# Of what a layer takes, the least that a change must save: each has to be loaded.
_WORTH = 0.002
_MODULES, _TAKERS = 3, 4
# A module has so many copies more than are asked for, at most.
_MORE_COPIES = 2
Row = list[tuple[int, ...]]


@dataclass(slots=True, eq=False)
class Improver:
    """`seconds` for all layers together; the layer with the most time left to win has its turn first."""

    evaluator: Evaluator
    seconds: float

    def improve(self, holders: Holders, least_L: Floats) -> Holders:
        """A placement that is at least as quick. `least_L`: nothing is quicker than that."""
        found = [list(row) for row in holders]
        room_M = self._room_left(found)
        now_L = self.evaluator.layer_seconds(found)
        deadline = time.monotonic() + self.seconds
        order = np.argsort(-(now_L - least_L), kind="stable").tolist()
        for place, layer in enumerate(order):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            # The first ones may take twice their part: they have more to win.
            until = time.monotonic() + 2 * left / (len(order) - place)
            self._layer(layer, found[layer], room_M, float(now_L[layer]), min(until, deadline))
        return found

    def _room_left(self, holders: Holders) -> Ints:
        ranks = [rank for row in holders for ranks in row for rank in ranks]
        return self.evaluator.problem.room_M - np.bincount(
            ranks, minlength=self.evaluator.problem.num_workers
        )

    def _layer(self, layer: int, row: Row, room_M: Ints, now: float, deadline: float) -> None:
        while time.monotonic() < deadline:
            for change in self._changes(layer, row, room_M):
                before = {module: row[module] for module in change}
                for module, ranks in change.items():
                    row[module] = ranks
                after = self.evaluator.layer(layer, row)
                if after < (1 - _WORTH) * now:
                    now = after
                    for module, ranks in before.items():
                        np.add.at(room_M, list(ranks), 1)
                        np.add.at(room_M, list(change[module]), -1)
                    break
                for module, ranks in before.items():
                    row[module] = ranks
                if time.monotonic() >= deadline:
                    return
            else:
                return

    def _changes(self, layer: int, row: Row, room_M: Ints) -> Iterator[dict[int, tuple[int, ...]]]:
        """For the worker that is slowest in the steps that take longest: another holder for one of its
        modules, one more holder, or an exchange with a worker that has the least to do."""
        evaluator, problem = self.evaluator, self.evaluator.problem
        times_SM = np.array(
            [evaluator.worker_times(layer, step, row) for step in range(evaluator.drawn.shape[1])]
        )
        slowest = int(times_SM[int(times_SM.max(axis=1).argmax())].argmax())
        takers = [int(m) for m in times_SM.mean(axis=0).argsort(kind="stable")[:_TAKERS] if m != slowest]
        work_EM = problem.work(layer)
        mine = [module for module in range(problem.num_modules) if slowest in row[module]]
        mine.sort(key=lambda module: -work_EM[module, slowest])
        for module in mine[:_MODULES]:
            for taker in takers:
                held = row[module]
                if taker in held:
                    continue
                moved = tuple(taker if rank == slowest else rank for rank in held)
                if room_M[taker] > 0:
                    yield {module: moved}
                    if len(held) < problem.num_copies + _MORE_COPIES:
                        yield {module: (*held, taker)}
                for other in self._lighter(row, work_EM, module, slowest, taker):
                    back = tuple(slowest if rank == taker else rank for rank in row[other])
                    yield {module: moved, other: back}

    def _lighter(self, row: Row, work_EM: Floats, module: int, slowest: int, taker: int) -> list[int]:
        """What the taker could give for a module: less than that, the most first."""
        limit = work_EM[module, slowest]
        fit = [
            other
            for other, ranks in enumerate(row)
            if taker in ranks and slowest not in ranks and work_EM[other, slowest] < limit
        ]
        return sorted(fit, key=lambda other: -work_EM[other, slowest])[:2]
