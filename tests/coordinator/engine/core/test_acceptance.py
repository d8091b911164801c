"""Which drawn tokens stand: the first, and those after drafted ones that were drawn."""

from collections.abc import Sequence

import pytest

from coordinator.engine.core.acceptance import accept, sampling_rows
from coordinator.engine.core.sequence import Sequence as Running
from coordinator.engine.core.step import Chunk
from coordinator.engine.messages.errors import NoTokenLeftError
from coordinator.engine.messages.output import TokenLogprobs
from coordinator.engine.sampling.sampler import Drawn
from tests.models import make_request


def chunk(*draft: int, key: int = 0) -> Chunk:
    return Chunk(
        Running(make_request(str(key)), 12, 4, key=key), 2, 1 + len(draft), completes=True, draft=draft
    )


@pytest.mark.parametrize(
    ("draft", "drawn", "tokens"),
    [
        ((), [5], [5]),
        ((7,), [5, 6], [5]),
        ((5,), [5, 6], [5, 6]),
        ((5, 6), [5, 9, 6], [5, 9]),
        ((5, 6), [5, 6, 8], [5, 6, 8]),
        ((7, 6), [5, 6, 8], [5]),
        ((5, 6), [5, None, 8], [5]),
        ((5, 6), [5, 6, None], [5, 6]),
        ((5, 6), [None, 6, 7], [None]),
    ],
)
def test_tokens_stand_as_far_as_the_draft_was_right(
    draft: Sequence[int], drawn: list[int | None], tokens: list[int | None]
) -> None:
    error = NoTokenLeftError()
    failures = {row: error for row, token_id in enumerate(drawn) if token_id is None}
    found = accept([chunk(*draft)], Drawn(drawn, failures), [])
    assert [*found.token_ids, *found.further.get(0, ())] == tokens
    assert found.failures == ({0: error} if drawn[0] is None else {}), "what is only drafted fails nothing"
    assert found.logprobs == []


def test_each_chunk_has_rows_of_its_own() -> None:
    chunks = [chunk(key=3), chunk(1, 2, key=4), chunk(8, key=5)]
    rows = sampling_rows(chunks)
    assert [(row.key, row.drafted, row.num_tokens) for row in rows] == [
        (3, (), 3),
        (4, (), 3),
        (4, (1,), 4),
        (4, (1, 2), 5),
        (5, (), 3),
        (5, (8,), 4),
    ]
    scores = [None, *(TokenLogprobs(n, -1.0, 1) for n in range(3)), None, None]
    found = accept(chunks, Drawn([9, 1, 2, 3, 8, 8], {}), scores)
    assert found.token_ids == [9, 1, 8]
    assert found.further == {4: [2, 3], 5: [8]}
    assert found.logprobs == [None, scores[1], None]
    assert found.further_logprobs == {4: scores[2:4], 5: []}
