"""Placements that need no planner: in turn, and the longest first. What a plan is compared with."""

import numpy as np

from scaling.planning.problem import Holders, Problem


def round_robin(problem: Problem) -> Holders:
    """Module by module, each copy to the next worker that has room and not yet a copy."""
    room_M, at = problem.room_M.copy(), 0
    holders: Holders = []
    for _ in range(problem.num_layers):
        row = []
        for _ in range(problem.num_modules):
            ranks: list[int] = []
            for _ in range(2 * problem.num_workers):
                rank, at = at, (at + 1) % problem.num_workers
                if room_M[rank] and rank not in ranks:
                    ranks.append(rank)
                    room_M[rank] -= 1
                if len(ranks) == problem.num_copies:
                    break
            if len(ranks) < problem.num_copies:
                return wrap_around(problem)
            row.append(tuple(ranks))
        holders.append(row)
    return holders


def longest_first(problem: Problem) -> Holders:
    """Graham, Bounds on multiprocessing timing anomalies, SIAM J. Applied Mathematics 17, 1969: in each layer
    the largest module first, each copy with an equal part of it, to the worker that is done with it first."""
    room_M = problem.room_M.copy()
    holders: Holders = []
    for layer in range(problem.num_layers):
        work_EM = problem.work(layer) / problem.num_copies
        time_M = problem.start_M.copy()
        row: list[tuple[int, ...]] = [()] * problem.num_modules
        for module in np.argsort(-work_EM.min(axis=1), kind="stable"):
            ranks: list[int] = []
            for _ in range(problem.num_copies):
                done_M = np.where(room_M > 0, time_M + work_EM[module], np.inf)
                done_M[ranks] = np.inf
                rank = int(done_M.argmin())
                if done_M[rank] == np.inf:
                    return wrap_around(problem)
                time_M[rank] = done_M[rank]
                room_M[rank] -= 1
                ranks.append(rank)
            row[int(module)] = tuple(ranks)
        holders.append(row)
    return holders


def wrap_around(problem: Problem) -> Holders:
    """Fits whenever anything does (McNaughton, Scheduling with deadlines and loss functions, Management
    Science 6, 1959): each worker is filled with modules in turn, and the turns go round."""
    num = problem.num_layers * problem.num_modules
    flat: list[list[int]] = [[] for _ in range(num)]
    at, left = 0, problem.num_copies * num
    for rank in range(problem.num_workers):
        for _ in range(min(int(problem.room_M[rank]), num, left)):
            flat[at % num].append(rank)
            at, left = at + 1, left - 1
    width = problem.num_modules
    return [[tuple(flat[layer * width + e]) for e in range(width)] for layer in range(problem.num_layers)]
