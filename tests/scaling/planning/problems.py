"""Problems of planning, drawn and made."""

import numpy as np
from hypothesis import strategies as st

from scaling.planning.loads import Floats
from scaling.planning.problem import GRID, Holders, Problem


def make_problem(
    chance_LE: Floats,
    speeds: list[float],
    room: list[int],
    *,
    num_rows: int = 8,
    num_copies: int = 1,
    num_slices: int = 1,
    fixed: float = 4.0,
    start: float = 0.0,
) -> Problem:
    """A module takes `fixed` microseconds and one for each row, over the worker's speed."""
    rows_G = np.array(GRID, np.float64)
    table_KG = 1e-6 * np.where(rows_G > 0, fixed + rows_G, 0)[None, :] / np.array(speeds)[:, None]
    return Problem(
        np.repeat(chance_LE, num_slices, axis=1),
        num_rows,
        table_KG / num_slices,
        np.arange(len(speeds)),
        np.array(room),
        np.full(len(speeds), 1e-6 * start),
        num_copies,
        num_slices,
    )


@st.composite
def problems(draw: st.DrawFn, num_slices: int = 1) -> Problem:
    """Small ones in which all copies fit."""
    num_layers, num_experts = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    speeds = draw(st.lists(st.floats(0.2, 5), min_size=1, max_size=5))
    num_copies = draw(st.integers(1, min(3, len(speeds))))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 16)))
    top_k = draw(st.integers(1, num_experts))
    weights = rng.random((num_layers, num_experts)) + 0.01
    chance_LE = np.minimum(1.0, top_k * weights / weights.sum(axis=1, keepdims=True))
    # What was cut off goes to those that have least: the chances add up to K.
    for row in chance_LE:
        while row.sum() < top_k - 1e-9:
            place = int(row.argmin())
            row[place] = min(1.0, row[place] + top_k - row.sum())
    num = num_layers * num_experts * num_slices
    least = -(-num_copies * num // len(speeds))
    room = [least + draw(st.integers(0, num)) for _ in speeds]
    return make_problem(
        chance_LE,
        speeds,
        room,
        num_rows=draw(st.integers(1, 16)),
        num_copies=num_copies,
        num_slices=num_slices,
        start=draw(st.sampled_from([0.0, 3.0])),
    )


def check_placement(problem: Problem, holders: Holders) -> None:
    """Every module has its copies on different workers, and no worker more than fit."""
    held = [0] * problem.num_workers
    assert len(holders) == problem.num_layers
    for row in holders:
        assert len(row) == problem.num_modules
        for ranks in row:
            assert len(set(ranks)) == len(ranks) >= problem.num_copies
            for rank in ranks:
                held[rank] += 1
    assert all(num <= room for num, room in zip(held, problem.room_M.tolist(), strict=True))
