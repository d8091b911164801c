"""What is to be placed on which workers, with its costs, as arrays. Pure.

Shapes: L layers with experts, E modules of each (experts, or slices of them: slot by slot, as the product
counts them), M workers, K kinds of workers, G points of a table, C copies.

A worker's time for a layer is the sum over its modules that have rows of what their rows take there: in
decode mostly the reading of weights from memory, once for each module that has any. A layer takes as long as
its slowest worker.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moe_model.errors import ConfigError
from scaling.costs.base import NodeCosts
from scaling.planning.loads import Floats

Ints = NDArray[np.int64]
# By layer and module, the workers that hold it.
Holders = list[list[tuple[int, ...]]]
# Rows for which times are looked up; between two of them they are on a line.
GRID = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024, 4096, 1 << 20)
_MEASURED = 4
# `fixed_rows` at most: what a module costs without its rows is then all that counts.
_MOST_FIXED = 1024.0


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """`chance_LE`: of a row, to be one of each module. `num_rows`: of a step. `table_KG`: seconds of one
    module that has so many rows of GRID; `kind_M`, a worker's kind; `room_M`: modules that fit; `start_M`:
    seconds that a worker takes for a layer in which it is asked at all. `num_copies`: of each module, on
    different workers. `num_slices`: of each expert, which are dispatched one after the other slot by slot."""

    chance_LE: Floats
    num_rows: int
    table_KG: Floats
    kind_M: Ints
    room_M: Ints
    start_M: Floats
    num_copies: int = 1
    num_slices: int = 1

    @property
    def num_layers(self) -> int:
        return int(self.chance_LE.shape[0])

    @property
    def num_modules(self) -> int:
        """Of one layer."""
        return int(self.chance_LE.shape[1])

    @property
    def num_workers(self) -> int:
        return len(self.kind_M)

    def times(self, rows: Floats, kinds: Ints) -> Floats:
        """Seconds of modules with so many rows each on workers of these kinds; shapes broadcast."""
        at = np.clip(np.searchsorted(_GRID, rows, side="right") - 1, 0, len(GRID) - 2)
        low, high = _GRID[at], _GRID[at + 1]
        share = (rows - low) / (high - low)
        found: Floats = self.table_KG[kinds, at] * (1 - share) + self.table_KG[kinds, at + 1] * share
        return found

    def work(self, layer: int) -> Floats:
        """Seconds of each module in a mean step, if a worker computes it always."""
        return np.asarray(self.kind_work(layer)[:, self.kind_M], np.float64)

    def kind_work(self, layer: int) -> Floats:
        """The same, by kind of worker."""
        rows_E = self.num_rows * self.chance_LE[layer]
        touched_E = 1 - (1 - self.chance_LE[layer]) ** self.num_rows
        given_E = np.maximum(1.0, rows_E / np.maximum(touched_E, 1e-12))
        kinds = np.arange(len(self.table_KG))
        return np.asarray(touched_E[:, None] * self.times(given_E[:, None], kinds[None, :]), np.float64)

    def layer_work(self) -> Floats:
        """Of each layer, all of it on each worker."""
        return np.array([self.kind_work(layer).sum(axis=0)[self.kind_M] for layer in range(self.num_layers)])

    @property
    def fixed_rows(self) -> float:
        """So many rows cost as much as that a module has any: by the rows that its modules have."""
        rows_E = np.unique(np.round(self.num_rows * self.chance_LE.ravel()))
        most = max(2.0, float(rows_E.max(initial=2.0)))
        one_K = self.times(np.ones(len(self.table_KG)), np.arange(len(self.table_KG)))
        many_K = self.times(np.full(len(self.table_KG), most), np.arange(len(self.table_KG)))
        row = float(np.mean((many_K - one_K) / (most - 1) / one_K))
        return _MOST_FIXED if row <= 1 / _MOST_FIXED else max(0.0, 1 / row - 1)

    def costs(self) -> Floats:
        """What a row costs each worker with `fixed_rows` beside; 1 with the quickest."""
        total_M = self.layer_work().sum(axis=0)
        return np.asarray(total_M / total_M.min(), np.float64)

    def check(self) -> None:
        """Raises ConfigError where not all copies fit, saying how many modules are too many."""
        if self.num_copies > self.num_workers:
            raise ConfigError(
                f"{self.num_copies} copies of each expert need as many workers, there are {self.num_workers}"
            )
        num = self.num_layers * self.num_modules
        # Enough also where the copies are to be on different workers (McNaughton's wrap-around).
        room = int(np.minimum(self.room_M, num).sum())
        if room < self.num_copies * num:
            raise LacksRoomError(self.num_copies * num - room)

    def with_(self, **changes: object) -> "Problem":
        return replace(self, **changes)  # type: ignore[arg-type]


class LacksRoomError(ConfigError):
    """So many modules have no place."""

    def __init__(self, num_lacking: int) -> None:
        super().__init__(f"{num_lacking} copies of experts do not fit into the workers' memory")
        self.num_lacking = num_lacking


_GRID = np.array(GRID, np.float64)


def expert_times(costs: Sequence[NodeCosts], num_slices: int = 1) -> Floats:
    """[K, G] seconds of one module of several in one call, by its rows, for each kind's costs."""
    table = np.zeros((len(costs), len(GRID)))
    for kind, cost in enumerate(costs):
        for at, rows in enumerate(GRID):
            if rows:
                more, less = (cost.experts([rows] * num) for num in (2 * _MEASURED, _MEASURED))
                table[kind, at] = max(more - less, 1e-9 * _MEASURED) / _MEASURED / num_slices
    # No noise of a measurement may make more rows quicker.
    return np.asarray(np.maximum.accumulate(table, axis=1), np.float64)
