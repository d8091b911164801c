"""Which slots torch's attention reads: those of each row's own context, in their order."""

import torch
from hypothesis import given

from coordinator.engine.attention.attention_rows import DecodeRows, PrefillSpan, decode_rows, prefill_spans
from coordinator.engine.core.batch import build_batch
from coordinator.engine.core.scheduler import Chunk, Step
from tests.coordinator.engine.core.test_batch import BLOCK_SIZE, chunks, slot

CPU = torch.device("cpu")


@given(chunks())
def test_every_row_reads_its_own_context(picked: list[Chunk]) -> None:
    batch = build_batch(Step(tuple(picked)), BLOCK_SIZE, CPU)
    singles = [chunk for chunk in batch.chunks if chunk.num_tokens == 1]
    _check_decode(decode_rows(batch, BLOCK_SIZE, CPU), singles)
    _check_prefills(prefill_spans(batch, BLOCK_SIZE, CPU), list(batch.chunks))


def _check_decode(rows: DecodeRows | None, singles: list[Chunk]) -> None:
    if not singles:
        assert rows is None
        return
    assert rows is not None
    longest = max(c.start + 1 for c in singles)
    assert rows.slots_RS.shape == rows.mask_RS.shape == (len(singles), longest)
    for chunk, slots, mask in zip(singles, rows.slots_RS.tolist(), rows.mask_RS.tolist(), strict=True):
        length = chunk.start + 1
        assert mask == [True] * length + [False] * (longest - length)
        assert slots[:length] == [slot(chunk, position) for position in range(length)]
        assert slots[length:] == [0] * (longest - length), "padding reads the slot that nobody writes"


def _check_prefills(found: tuple[PrefillSpan, ...], ordered: list[Chunk]) -> None:
    spans = iter(found)
    row = 0
    for chunk in ordered:
        if chunk.num_tokens > 1:
            span = next(spans)
            assert (span.first_row, span.num_tokens, span.start) == (row, chunk.num_tokens, chunk.start)
            end = chunk.start + chunk.num_tokens
            assert span.slots_C.tolist() == [slot(chunk, position) for position in range(end)]
        row += chunk.num_tokens
    assert next(spans, None) is None
