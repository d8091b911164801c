"""Backlog: what a front has not taken is merged as a stream merges it, and bounded over all its requests."""

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.client.output_stream import Unread
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import FinishReason, Output, RoutedExperts
from coordinator.engine.process.backlog import Backlog
from moe_model.errors import NumericError
from tests.coordinator.engine.process.said import steps_of

FAILED = Output("", failure=Failure.of(NumericError("broken")))


def routed(num_bytes: int) -> Output:
    return Output("", routed_experts=(RoutedExperts(0, np.zeros((num_bytes, 1, 1), np.uint8)),))


@given(steps_of(num_requests=3, num_sequences=2), st.integers(1, 2000))
def test_taken_in_parts_it_is_what_each_request_was_told(
    steps: list[list[tuple[int, Output]]], part: int
) -> None:
    backlog, expected = Backlog(), {number: Unread("") for number in range(3)}
    for step in steps:
        for number, output in step:
            if output.only_token is None:
                assert backlog.put(number, output)
            else:
                assert backlog.put_token(number, output.index, output.only_token)
            expected[number].put(output)
    taken: dict[int, list[Output]] = {}
    while backlog:
        for number, output in backlog.take(part):
            taken.setdefault(number, []).append(output)
    assert taken == {number: outputs for number, each in expected.items() if (outputs := each.take())}


def test_it_is_bounded_over_all_requests_and_taking_makes_room() -> None:
    backlog = Backlog(max_bytes=1000)
    assert backlog.put(1, routed(600))
    assert backlog.put(2, routed(600))
    assert not backlog.put(3, routed(1))
    assert not backlog.put_token(1, 0, 5)
    assert backlog.put(3, FAILED)
    assert [number for number, _ in backlog.take(1)] == [1]
    assert backlog.put_token(1, 0, 5)
    assert [number for number, _ in backlog.take(10_000)] == [2, 3, 1]
    assert not backlog


def test_a_request_is_bounded_as_a_reader_s_is() -> None:
    backlog = Backlog()
    assert backlog.put(1, routed(9 << 20))
    assert not backlog.put_token(1, 0, 5)
    assert backlog.put_token(2, 0, 5)


def test_what_was_told_stays_before_the_failure() -> None:
    backlog = Backlog()
    backlog.put_token(1, 0, 5)
    backlog.put(1, FAILED)
    backlog.put_token(1, 0, 6)
    assert backlog.take(1) == [(1, Output("", (5,))), (1, FAILED)]


def test_the_last_output_keeps_its_reason() -> None:
    backlog = Backlog()
    last = Output("key", (6,), FinishReason.LENGTH)
    backlog.put_token(1, 0, 5)
    backlog.put(1, last)
    assert backlog.take(1) == [(1, msgspec.structs.replace(last, request_id="", token_ids=(5, 6)))]
