"""Which slots of a group of the cache the rows of a batch attend to, as torch's attention wants it.

Shapes: T tokens of the step, B sequences of a part, M tokens of each, S columns: slots of the longest
context.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coordinator.engine.core.batch import Batch
from coordinator.engine.core.step import Chunk

# Fewer queries than this at once waste the product; more, with a window, attend to much that is hidden.
_LEAST_QUERIES = 64


@dataclass(frozen=True, slots=True)
class QueryPart:
    """Rows of a step that are computed together: M tokens in a row of each of B sequences.

    `slots_BS` are what a sequence's tokens may see. Token m of sequence b has column `own_B[b]` + m, and sees
    the columns up to it; with a window, the last so many of them. `own` are the least and the largest own_B.
    """

    rows: Tensor | slice
    num_tokens: int
    slots_BS: Tensor
    own_B: Tensor
    own: tuple[int, int]

    @property
    def is_triangle(self) -> bool:
        """Whether the columns are just the tokens."""
        return self.own == (0, 0) and self.slots_BS.shape == (1, self.num_tokens)

    def seen(self, tokens: range, columns: range, window: int | None) -> Tensor | None:
        """Returns seen_BMS, which of these columns each of these tokens sees; None: all."""
        is_before = columns.stop - 1 <= self.own[0] + tokens.start
        if is_before and (window is None or columns.start > self.own[1] + tokens.stop - 1 - window):
            return None
        device = self.own_B.device
        own_BM1 = (self.own_B[:, None] + torch.arange(tokens.start, tokens.stop, device=device))[..., None]
        column_S = torch.arange(columns.start, columns.stop, device=device)
        seen_BMS = column_S <= own_BM1
        return seen_BMS if window is None else seen_BMS & (column_S > own_BM1 - window)


@dataclass(frozen=True, slots=True)
class GroupBlocks:
    """Where a group of the cache has the sequences' tokens."""

    block_size: int
    group: int

    def slots(self, chunks: Sequence[Chunk], positions_BS: np.ndarray, last_B1: np.ndarray) -> np.ndarray:
        """Padding reads slot 0, which is never written: a neighbour's numbers, good or bad, cannot get in."""
        inside_BS = np.minimum(positions_BS, last_B1)
        num_blocks = int(last_B1.max()) // self.block_size + 1
        table_BN = block_table(chunks, num_blocks, self.group).astype(np.int64)
        blocks_BS = np.take_along_axis(table_BN, inside_BS // self.block_size, axis=1)
        slots_BS = blocks_BS * self.block_size + inside_BS % self.block_size
        return np.where(positions_BS <= last_B1, slots_BS, 0)


def query_parts(batch: Batch, blocks: GroupBlocks, window: int | None, most_slots: int) -> list[QueryPart]:
    """Of all rows of the step. Single tokens are together as long as they have at most `most_slots` slots,
    padding included; a chunk is a part by itself, or with a window several."""
    device = batch.positions_T.device
    singles = [row for row, chunk in enumerate(batch.chunks) if chunk.num_tokens == 1]
    parts = [
        _single_tokens(batch, rows, blocks, window, device)
        for rows in _of_like_length(batch.chunks, singles, window, most_slots)
    ]
    for chunk, first_row in zip(batch.chunks, batch.first_rows, strict=True):
        if chunk.num_tokens == 1:
            continue
        at_once = chunk.num_tokens if window is None else max(window, _LEAST_QUERIES)
        for start in range(0, chunk.num_tokens, at_once):
            tokens = range(start, min(start + at_once, chunk.num_tokens))
            parts.append(_tokens_of_chunk(chunk, first_row, tokens, blocks, window, device))
    return parts


def block_table(chunks: Sequence[Chunk], num_blocks: int, group: int) -> np.ndarray:
    """int32 [chunks, num_blocks]: the first blocks of each chunk's sequence in a group of the cache, then 0.
    Those that lie behind the group's window are 0 as well."""
    table_NB = np.zeros((len(chunks), num_blocks), dtype=np.int32)
    for row, chunk in enumerate(chunks):
        ids = np.frombuffer(chunk.sequence.tables[group].ids, dtype=np.int32)[:num_blocks]
        table_NB[row, : len(ids)] = ids
    return table_NB


def _of_like_length(
    chunks: Sequence[Chunk], rows: Sequence[int], window: int | None, most_slots: int
) -> Iterator[list[int]]:
    """The rows, sorted by what they see: a short context is not padded to a long one for nothing."""
    part: list[int] = []
    for row in sorted(rows, key=lambda row: chunks[row].start):
        if part and (len(part) + 1) * _num_seen(chunks[row].start, window) > most_slots:
            yield sorted(part)
            part = []
        part.append(row)
    if part:
        yield sorted(part)


def _single_tokens(
    batch: Batch, rows: list[int], blocks: GroupBlocks, window: int | None, device: torch.device
) -> QueryPart:
    """`rows` are places of chunks, which are those of their rows: single tokens come first."""
    chunks = [batch.chunks[row] for row in rows]
    last_B1 = np.array([[chunk.start] for chunk in chunks])
    own_B1 = np.array([[_num_seen(chunk.start, window) - 1] for chunk in chunks])
    slots_BS = blocks.slots(chunks, last_B1 - own_B1 + np.arange(own_B1.max() + 1), last_B1)
    is_all = rows == list(range(len(rows)))
    return QueryPart(
        slice(0, len(rows)) if is_all else torch.tensor(rows, device=device),
        1,
        torch.from_numpy(slots_BS).to(device),
        torch.from_numpy(own_B1[:, 0]).to(device),
        (int(own_B1.min()), int(own_B1.max())),
    )


def _tokens_of_chunk(
    chunk: Chunk, first_row: int, tokens: range, blocks: GroupBlocks, window: int | None, device: torch.device
) -> QueryPart:
    first, last = chunk.start + tokens.start, chunk.start + tokens.stop - 1
    own = _num_seen(first, window) - 1
    positions_1S = np.arange(first - own, last + 1)[None]
    return QueryPart(
        slice(first_row + tokens.start, first_row + tokens.stop),
        len(tokens),
        torch.from_numpy(blocks.slots([chunk], positions_1S, np.array([[last]]))).to(device),
        torch.tensor([own], device=device),
        (own, own),
    )


def _num_seen(position: int, window: int | None) -> int:
    return position + 1 if window is None else min(position + 1, window)
