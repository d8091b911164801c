"""build_batch: every token's id, position and slot, and the rows that are sampled."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.core.batch import build_batch
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Chunk, Step
from coordinator.engine.messages.request import Request, StopRules
from moe_model.sampling.params import SamplingParams

BLOCK_SIZE = 4


@st.composite
def chunks(draw: st.DrawFn) -> list[Chunk]:
    """Chunks of different sequences in any order, with blocks of their own."""
    free = draw(st.permutations(range(1, 60)))
    result, used = [], 0
    for name in range(draw(st.integers(1, 6))):
        length = draw(st.integers(1, 20))
        ids = tuple(draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)))
        sequence = Sequence(
            Request(str(name), ids, SamplingParams(), StopRules(1)), draw(st.integers(1, 20)), 4
        )
        start = draw(st.integers(0, sequence.context_len - 1))
        count = draw(st.integers(1, sequence.context_len - start))
        completes = start + count == sequence.context_len
        draft = tuple(draw(st.lists(st.integers(0, 99), max_size=5))) if completes and count == 1 else ()
        num_blocks = -(-(sequence.context_len + len(draft)) // BLOCK_SIZE)
        sequence.tables = (BlockTable(free[used : used + num_blocks]),)
        used += num_blocks
        result.append(Chunk(sequence, start, count + len(draft), completes, draft))
    return result


def slot(chunk: Chunk, position: int) -> int:
    block, offset = divmod(position, BLOCK_SIZE)
    return chunk.sequence.tables[0].ids[block] * BLOCK_SIZE + offset


def id_at(chunk: Chunk, position: int) -> int:
    """Of the context, or of the draft after it."""
    context = chunk.sequence.context(0, chunk.sequence.context_len)
    return [*context, *chunk.draft][position]


@given(chunks())
def test_every_token_is_where_it_belongs(picked: list[Chunk]) -> None:
    batch = build_batch(Step(tuple(picked)), BLOCK_SIZE, torch.device("cpu"))
    ordered = [c for c in picked if c.num_tokens == 1] + [c for c in picked if c.num_tokens > 1]
    rows = [(c, c.start + i) for c in ordered for i in range(c.num_tokens)]
    assert batch.token_ids_T.tolist() == [id_at(c, p) for c, p in rows]
    assert batch.positions_T.tolist() == [p for _, p in rows]
    assert batch.slots[0].tolist() == [slot(c, p) for c, p in rows]
    row_at = {(id(c), p): row for row, (c, p) in enumerate(rows)}
    assert batch.sample_rows.tolist() == [
        row_at[id(c), p]
        for c in picked
        if c.samples
        for p in range(c.sequence.context_len - 1, c.start + c.num_tokens)
    ]
