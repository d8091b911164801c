"""A first placement: in each layer the most wanted first, to the worker that is done first. Vectorised."""

import numpy as np

from scaling.planning.baselines import wrap_around
from scaling.planning.loads import Floats
from scaling.planning.problem import Holders, Ints, Problem


def greedy(problem: Problem) -> Holders:
    """Every module's first copies of a layer, then the second ones, which take half of the first ones' load,
    and so on. Memory is shared out among the layers, so that quick workers have room in all of them."""
    room = _Room(problem)
    holders: Holders = []
    for layer in range(problem.num_layers):
        room.open(layer)
        row: list[list[int]] = [[] for _ in range(problem.num_modules)]
        work_EM = problem.work(layer)
        time_M = problem.start_M.copy()
        order = np.argsort(-work_EM.min(axis=1), kind="stable").tolist()
        for copy in range(problem.num_copies):
            for module in order:
                if not _give(room, row[module], work_EM[module], time_M, copy):
                    return wrap_around(problem)
        holders.append([tuple(ranks) for ranks in row])
    return holders


def _give(room: "_Room", ranks: list[int], work_M: Floats, time_M: Floats, copy: int) -> bool:
    done_M = time_M + work_M / (copy + 1)
    done_M[ranks] = np.inf
    rank = int(np.where(room.is_free_M, done_M, np.inf).argmin())
    if not room.is_free_M[rank] or rank in ranks:
        rank = int(np.where(room.left_M > 0, done_M, np.inf).argmin())
        if room.left_M[rank] <= 0 or rank in ranks:
            return False
    # The copies share what the module takes.
    for other in ranks:
        time_M[other] -= work_M[other] / copy - work_M[other] / (copy + 1)
    time_M[rank] += work_M[rank] / (copy + 1)
    room.take(rank)
    ranks.append(rank)
    return True


class _Room:
    """`left_M`: modules that fit still; `is_free_M`: whether some of these are of this layer's part."""

    def __init__(self, problem: Problem) -> None:
        self.left_M: Ints = problem.room_M.copy()
        self._total_M: Ints = np.minimum(problem.room_M, problem.num_layers * problem.num_modules)
        self._taken_M = np.zeros(problem.num_workers, np.int64)
        self._num_layers = problem.num_layers
        # Parts that are no whole numbers are rounded at another layer for each worker.
        self._offset_M = (np.arange(problem.num_workers) * 0.618034) % 1
        self._due_M = np.zeros(problem.num_workers, np.int64)
        self.is_free_M = self.left_M > 0

    def open(self, layer: int) -> None:
        share = (layer + 1) / self._num_layers
        self._due_M = np.minimum(np.floor(self._total_M * share + self._offset_M), self._total_M).astype(
            np.int64
        )
        self.is_free_M = self._taken_M < self._due_M

    def take(self, rank: int) -> None:
        self.left_M[rank] -= 1
        self._taken_M[rank] += 1
        self.is_free_M[rank] = self._taken_M[rank] < self._due_M[rank]
