"""What times of messages amount to."""

import pytest

from benchmarks.latency import Spread, percentile, spread, timing
from benchmarks.light_clients import Trace
from expertmesh.v1 import generation_pb2 as pb


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 50.0), (50.5, 51.0), (99, 99.0), (100, 100.0)]
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], percent) == expected


def test_percentiles_of_few() -> None:
    assert percentile([], 99) == 0.0
    assert percentile([3.0], 1) == percentile([3.0], 99) == 3.0
    assert spread([4.0, 1.0, 2.0]) == Spread(p50=2.0, p99=4.0)


def delta(num_tokens: int) -> bytes:
    return pb.GenerateStreamResponse(delta=pb.SequenceDelta(num_tokens=num_tokens)).SerializeToString()


def other() -> bytes:
    return pb.GenerateStreamResponse(prompt=pb.PromptInfo(prompt_tokens=3)).SerializeToString()


# Due at 10; the prompt is told at once, a summary comes after the tokens.
MESSAGES = [(10.5, other()), (11.0, delta(1)), (11.5, delta(2)), (14.0, delta(1)), (14.25, other())]


def test_the_times_of_a_request() -> None:
    found = timing(Trace(due=10.0, messages=MESSAGES, ended=15.0), expected_tokens=4)
    assert (found.first_token, found.total) == (1.0, 5.0)
    assert found.per_token == 1.0
    assert found.gaps == (0.5, 2.5)


def test_what_comes_first_in_one_message_took_no_time_per_token() -> None:
    found = timing(Trace(due=0.0, messages=[(1.0, delta(4))], ended=1.0), expected_tokens=4)
    assert (found.per_token, found.gaps) == (0.0, ())


@pytest.mark.parametrize(
    "trace",
    [
        Trace(due=0.0, messages=MESSAGES[:3], ended=15.0),
        Trace(due=0.0, messages=MESSAGES, ended=15.0, code="UNAVAILABLE"),
        Trace(due=0.0),
    ],
)
def test_a_stream_that_is_not_whole_is_no_result(trace: Trace) -> None:
    with pytest.raises(RuntimeError, match="of 4 tokens"):
        timing(trace, expected_tokens=4)
