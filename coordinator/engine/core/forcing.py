"""Which experts the rows of a batch are made to go to, for measurements: by a law, or as a recording had it.

Shapes: T tokens of a batch.
"""

from typing import Protocol

import numpy as np
import torch

from coordinator.engine.core.batch import Batch
from moe_model.layers.forced_experts import ForcedRows, ForcedTable

# Odd numbers, so that neighbouring positions and tokens lie far apart (the first one is 2^63 / the golden
# ratio).
_BY_POSITION, _BY_TOKEN = 0x4F1BBCDCBFA53E0B, 0x2545F4914F6CDD1D
_SHIFT = 40


class Forcing(Protocol):
    """On the engine's thread."""

    def rows(self, batch: Batch) -> ForcedRows: ...


class HashedForcing:
    """By a token's position and id alone: the same in prefill and decode, in every batch and when a step is
    done again, and for all that may share what the cache has of it. Requests of different text differ."""

    def __init__(self, table: ForcedTable) -> None:
        """The table's rows are a power of two, at most 2^23."""
        assert table.num_rows & (table.num_rows - 1) == 0
        self._table = table

    def rows(self, batch: Batch) -> ForcedRows:
        mixed_T = batch.positions_T * _BY_POSITION + batch.token_ids_T * _BY_TOKEN
        rows_T = mixed_T.bitwise_right_shift_(_SHIFT).bitwise_and_(self._table.num_rows - 1)
        return ForcedRows(self._table, rows_T)


class ReplayedForcing:
    """The n-th sequence of an engine goes the way of the n-th recorded one, after the last again the first;
    so do its positions. `first_key`: of the sequence that is the first one."""

    def __init__(
        self, table: ForcedTable, starts_N: np.ndarray, lengths_N: np.ndarray, first_key: int = 0
    ) -> None:
        self._table = table
        self._starts, self._lengths = starts_N.tolist(), lengths_N.tolist()
        self._first_key = first_key

    def rows(self, batch: Batch) -> ForcedRows:
        rows: list[int] = []
        for chunk in batch.chunks:
            recorded = (chunk.sequence.key - self._first_key) % len(self._starts)
            start, length = self._starts[recorded], self._lengths[recorded]
            first = chunk.sequence.window_start + chunk.start
            rows += [start + position % length for position in range(first, first + chunk.num_tokens)]
        return ForcedRows(self._table, torch.tensor(rows, dtype=torch.int64).to(batch.positions_T.device))
