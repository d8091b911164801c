"""The stream grammar as a state machine: prompt+, (delta | finished)* per sequence, one summary, no more."""

from collections.abc import Iterable

from expertmesh.v1 import generation_pb2 as pb


def check_grammar(events: Iterable[pb.GenerateStreamResponse], num_sequences: int = 1) -> None:
    state = "start"
    finished: set[int] = set()
    for event in events:
        kind = event.WhichOneof("event")
        assert state != "end", f"{kind} after the summary"
        if kind == "prompt":
            assert state in ("start", "prompt"), f"prompt in state {state}"
            state = "prompt"
        elif kind in ("delta", "finished"):
            assert state in ("prompt", "output"), f"{kind} in state {state}"
            state = "output"
            index = event.delta.index if kind == "delta" else event.finished.index
            assert index not in finished, f"{kind} after sequence {index} had finished"
            if kind == "finished":
                assert event.finished.finish_reason != pb.FINISH_REASON_UNSPECIFIED
                finished.add(index)
        else:
            assert kind == "summary", f"unknown event {kind}"
            assert state == "output", f"summary in state {state}"
            state = "end"
    assert state == "end", f"ended in state {state}"
    assert finished == set(range(num_sequences))
