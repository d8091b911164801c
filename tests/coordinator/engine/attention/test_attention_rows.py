"""Which slots torch's attention reads: those that each row sees, in their order, and no others."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.attention.attention_rows import GroupBlocks, QueryPart, query_parts
from coordinator.engine.core.batch import Batch, build_batch
from coordinator.engine.core.step import Chunk, Step
from tests.coordinator.engine.core.test_batch import BLOCK_SIZE, chunks, slot

CPU = torch.device("cpu")
BLOCKS = GroupBlocks(BLOCK_SIZE, 0)


@given(chunks(), st.none() | st.integers(1, 12), st.integers(1, 200))
def test_every_row_sees_its_own_context(picked: list[Chunk], window: int | None, most_slots: int) -> None:
    batch = build_batch(Step(tuple(picked)), BLOCK_SIZE, CPU)
    found = {}
    for part in query_parts(batch, BLOCKS, window, most_slots):
        rows = torch.arange(len(batch.token_ids_T))[part.rows].view(-1, part.num_tokens)
        seen_BMS = _seen(part, window)
        for sequence, tokens in enumerate(rows.tolist()):
            for token, row in enumerate(tokens):
                found[row] = part.slots_BS[sequence][seen_BMS[sequence, token]].tolist()
    assert found == {row: _expected(chunk, place, window) for row, (chunk, place) in enumerate(_rows(batch))}


@given(chunks(), st.none() | st.integers(1, 12), st.integers(1, 200))
def test_single_tokens_are_together_within_a_bound(
    picked: list[Chunk], window: int | None, most_slots: int
) -> None:
    batch = build_batch(Step(tuple(picked)), BLOCK_SIZE, CPU)
    for part in query_parts(batch, BLOCKS, window, most_slots):
        assert len(part.slots_BS) == 1 or part.slots_BS.numel() <= most_slots
        assert window is None or part.slots_BS.shape[1] < window + part.num_tokens


@given(chunks())
def test_padding_reads_the_slot_that_nobody_writes(picked: list[Chunk]) -> None:
    batch = build_batch(Step(tuple(picked)), BLOCK_SIZE, CPU)
    for part in query_parts(batch, BLOCKS, None, 10**6):
        for own, slots in zip(part.own_B.tolist(), part.slots_BS.tolist(), strict=True):
            end = own + part.num_tokens
            assert 0 not in slots[:end]
            assert not any(slots[end:])


def _rows(batch: Batch) -> list[tuple[Chunk, int]]:
    return [(c, c.start + i) for c in batch.chunks for i in range(c.num_tokens)]


def _expected(chunk: Chunk, place: int, window: int | None) -> list[int]:
    first = 0 if window is None else max(0, place - window + 1)
    return [slot(chunk, position) for position in range(first, place + 1)]


def _seen(part: QueryPart, window: int | None) -> torch.Tensor:
    num_columns = part.slots_BS.shape[1]
    seen_BMS = part.seen(range(part.num_tokens), range(num_columns), window)
    if seen_BMS is None:
        return torch.ones(len(part.slots_BS), part.num_tokens, num_columns, dtype=torch.bool)
    return seen_BMS
