"""The checker itself must reject what it is there to reject."""

import pytest

from expertmesh.v1 import generation_pb2 as pb
from tests.coordinator.api.grammar import check_grammar

P = pb.GenerateStreamResponse(prompt=pb.PromptInfo())
D = pb.GenerateStreamResponse(delta=pb.SequenceDelta(num_tokens=1))
F = pb.GenerateStreamResponse(finished=pb.SequenceFinished(finish_reason=pb.FINISH_REASON_STOP))
S = pb.GenerateStreamResponse(summary=pb.StreamSummary())


@pytest.mark.parametrize("events", [[P, F, S], [P, D, F, S], [P, P, D, D, F, S]])
def test_accepts_complete_streams(events: list[pb.GenerateStreamResponse]) -> None:
    check_grammar(events)


@pytest.mark.parametrize(
    "events",
    [
        [],
        [P],
        [P, D],
        [P, D, F],
        [P, S],
        [D, F, S],
        [P, F, D, S],
        [P, F, F, S],
        [P, D, P, F, S],
        [P, F, S, S],
    ],
)
def test_rejects_others(events: list[pb.GenerateStreamResponse]) -> None:
    with pytest.raises(AssertionError):
        check_grammar(events)
