"""From a Step to the inputs of one forward pass.

Shapes: T tokens of the step. Everything is built from Python lists, then moved once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
from torch import Tensor

from coordinator.engine.core.step import Chunk, Step


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs of one forward pass. `chunks` are in the order of their rows, the first at `first_rows`; single
    tokens come first. `slots` has slots_T for each group of the cache."""

    chunks: tuple[Chunk, ...]
    first_rows: tuple[int, ...]
    token_ids_T: Tensor
    positions_T: Tensor
    slots: tuple[Tensor, ...]
    sample_rows: Tensor


def split_step(step: Step, num_parts: int) -> list[Step]:
    """Cuts the chunks, in their order, into at most `num_parts` runs of about as many tokens.

    A chunk stays whole: a step of one sequence is not cut.
    """
    parts: list[Step] = []
    part: list[Chunk] = []
    total, done = step.num_tokens, 0
    for chunk in step.chunks:
        # Its middle decides to which part a chunk belongs.
        if part and (done + chunk.num_tokens / 2) * num_parts >= (len(parts) + 1) * total:
            parts.append(Step(tuple(part)))
            part = []
        part.append(chunk)
        done += chunk.num_tokens
    return [*parts, Step(tuple(part))]


def join_batches(batches: Sequence[Batch]) -> Batch:
    """One after the other."""
    if len(batches) == 1:
        return batches[0]
    offsets = list(accumulate((len(batch.token_ids_T) for batch in batches), initial=0))
    return Batch(
        chunks=tuple(chunk for batch in batches for chunk in batch.chunks),
        first_rows=tuple(
            row + offset for batch, offset in zip(batches, offsets, strict=False) for row in batch.first_rows
        ),
        token_ids_T=torch.cat([batch.token_ids_T for batch in batches]),
        positions_T=torch.cat([batch.positions_T for batch in batches]),
        slots=tuple(map(torch.cat, zip(*(batch.slots for batch in batches), strict=True))),
        sample_rows=torch.cat(
            [batch.sample_rows + offset for batch, offset in zip(batches, offsets, strict=False)]
        ),
    )


def build_batch(step: Step, block_size: int, device: torch.device) -> Batch:
    """Lays the chunks out one after the other."""
    chunks = sorted(step.chunks, key=lambda chunk: chunk.num_tokens > 1)
    first_rows, num_rows, rows_of = [], 0, {}
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[list[int]] = [[] for _ in step.chunks[0].sequence.tables]
    for chunk in chunks:
        first_rows.append(num_rows)
        num_rows += chunk.num_tokens
        rows_of[id(chunk.sequence)] = range(num_rows - 1 - len(chunk.draft), num_rows)
        places = range(chunk.start, chunk.start + chunk.num_tokens)
        token_ids += chunk.token_ids
        positions += places
        for of_group, table in zip(slots, chunk.sequence.tables, strict=True):
            of_group += [table.ids[p // block_size] * block_size + p % block_size for p in places]

    sampled = [row for chunk in step.sampling for row in rows_of[id(chunk.sequence)]]
    columns = token_ids, positions, sampled, *slots
    moved = torch.tensor(list(chain.from_iterable(columns)), dtype=torch.int64).to(device, non_blocking=True)
    token_ids_T, positions_T, sample_rows, *slots_T = torch.split(moved, [*map(len, columns)])
    return Batch(tuple(chunks), tuple(first_rows), token_ids_T, positions_T, tuple(slots_T), sample_rows)
