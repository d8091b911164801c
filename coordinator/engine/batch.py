"""From a Step to the tensors of one forward pass.

Shapes: T tokens of the step, R single-token rows, S longest context among them, C context of one chunk.
Everything is built in numpy from Python lists, then moved once.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from coordinator.engine.scheduler import Chunk, Step


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


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward pass. `chunks` are in the order of their rows, the first at `first_rows`."""

    chunks: tuple[Chunk, ...]
    first_rows: tuple[int, ...]
    token_ids_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    decode: DecodeRows | None
    prefills: tuple[PrefillSpan, ...]
    sample_rows: Tensor


def build_batch(step: Step, block_size: int, device: torch.device) -> Batch:
    """Lays the chunks out one after the other, single tokens first."""
    singles = [chunk for chunk in step.chunks if chunk.num_tokens == 1]
    spans = [chunk for chunk in step.chunks if chunk.num_tokens > 1]
    chunks = singles + spans
    first_rows = np.cumsum([0] + [chunk.num_tokens for chunk in chunks])
    last_row_of = {id(c.sequence): int(first_rows[i + 1]) - 1 for i, c in enumerate(chunks)}

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return Batch(
        chunks=tuple(chunks),
        first_rows=tuple(first_rows[:-1].tolist()),
        token_ids_T=to_device(_concat([c.sequence.context(c.start, c.num_tokens) for c in chunks])),
        positions_T=to_device(_concat([np.arange(c.start, c.start + c.num_tokens) for c in chunks])),
        slots_T=to_device(_concat([_chunk_slots(c, block_size) for c in chunks])),
        decode=_decode_rows(singles, block_size, to_device) if singles else None,
        prefills=tuple(
            PrefillSpan(int(row), c.num_tokens, c.start, to_device(_context_slots(c, block_size)))
            for c, row in zip(spans, first_rows[len(singles) :], strict=False)
        ),
        sample_rows=to_device(np.array([last_row_of[id(c.sequence)] for c in step.sampling], dtype=np.int64)),
    )


def _concat(parts: Seq[Seq[int] | np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def _chunk_slots(chunk: Chunk, block_size: int) -> np.ndarray:
    """Slots of the chunk's own tokens."""
    return _context_slots(chunk, block_size)[chunk.start :]


def _context_slots(chunk: Chunk, block_size: int) -> np.ndarray:
    """Slots of the window up to and including the chunk's last token."""
    blocks = np.asarray(chunk.sequence.block_ids, dtype=np.int64)
    slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)
    return slots[: chunk.start + chunk.num_tokens]


def _decode_rows(
    chunks: Seq[Chunk], block_size: int, to_device: Callable[[np.ndarray], Tensor]
) -> DecodeRows:
    lengths_R = np.array([chunk.start + 1 for chunk in chunks])
    num_blocks = -(-int(lengths_R.max()) // block_size)
    # Padding reads slot 0, which nobody writes: a neighbour's numbers, good or bad, cannot get in.
    table_RB = np.zeros((len(chunks), num_blocks), dtype=np.int64)
    for row, chunk in enumerate(chunks):
        blocks = chunk.sequence.block_ids[:num_blocks]
        table_RB[row, : len(blocks)] = blocks
    slots_RS = (table_RB[:, :, None] * block_size + np.arange(block_size)).reshape(len(chunks), -1)
    slots_RS = slots_RS[:, : int(lengths_R.max())]
    mask_RS = np.arange(slots_RS.shape[1]) < lengths_R[:, None]
    return DecodeRows(to_device(np.where(mask_RS, slots_RS, 0)), to_device(mask_RS))
