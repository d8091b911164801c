"""Which slots the rows of a batch attend to, as torch's attention wants it.

Shapes: R single-token rows, S longest context among them, C context of one chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coordinator.engine.core.batch import Batch
from coordinator.engine.core.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows 0 .. R-1 of the step: one token each, attending to contexts of different lengths."""

    slots_RS: Tensor
    mask_RS: Tensor


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Rows `first_row` .. of one chunk, whose first token stands at position `start` of its window."""

    first_row: int
    num_tokens: int
    start: int
    slots_C: Tensor


def decode_rows(batch: Batch, block_size: int, device: torch.device) -> DecodeRows | None:
    """None where no chunk is a single token."""
    chunks = [chunk for chunk in batch.chunks if chunk.num_tokens == 1]
    if not chunks:
        return None
    lengths_R = np.array([chunk.start + 1 for chunk in chunks])
    num_blocks = -(-int(lengths_R.max()) // block_size)
    # Padding reads slot 0, which is never written: a neighbour's numbers, good or bad, cannot get in.
    table_RB = block_table(chunks, num_blocks).astype(np.int64)
    slots_RS = (table_RB[:, :, None] * block_size + np.arange(block_size)).reshape(len(chunks), -1)
    slots_RS = slots_RS[:, : int(lengths_R.max())]
    mask_RS = np.arange(slots_RS.shape[1]) < lengths_R[:, None]
    slots_RS = np.where(mask_RS, slots_RS, 0)
    return DecodeRows(torch.from_numpy(slots_RS).to(device), torch.from_numpy(mask_RS).to(device))


def prefill_spans(batch: Batch, block_size: int, device: torch.device) -> tuple[PrefillSpan, ...]:
    """One for each chunk of more than one token."""
    return tuple(
        PrefillSpan(row, chunk.num_tokens, chunk.start, _context_slots(chunk, block_size).to(device))
        for chunk, row in zip(batch.chunks, batch.first_rows, strict=True)
        if chunk.num_tokens > 1
    )


def block_table(chunks: Sequence[Chunk], num_blocks: int) -> np.ndarray:
    """int32 [chunks, num_blocks]: the first blocks of each chunk's sequence, then 0."""
    table = np.zeros((len(chunks), num_blocks), dtype=np.int32)
    for row, chunk in enumerate(chunks):
        blocks = chunk.sequence.block_ids[:num_blocks]
        table[row, : len(blocks)] = blocks
    return table


def _context_slots(chunk: Chunk, block_size: int) -> Tensor:
    """Slots of the window up to and including the chunk's last token."""
    blocks = torch.tensor(chunk.sequence.block_ids, dtype=torch.int64)
    slots = (blocks[:, None] * block_size + torch.arange(block_size)).reshape(-1)
    return slots[: chunk.start + chunk.num_tokens]
