"""Sequence: the window, and the table of rules that end a request."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.request import ContextOverflow, FinishReason, Request, StopRules
from coordinator.engine.sequence import Sequence, max_output_tokens
from moe_model.sampling import SamplingParams

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
EOS, HALT = 3, 7


def request(prompt_len: int = 2, **rules: object) -> Request:
    stop = replace(StopRules(max_tokens=5, eos_token_ids=frozenset({EOS})), **rules)  # type: ignore[arg-type]
    return Request("r", tuple(range(10, 10 + prompt_len)), SamplingParams(), stop)


@pytest.mark.parametrize(
    ("rules", "prompt_len", "tokens", "expected"),
    [
        ({}, 2, [9], (None, None)),
        ({}, 2, [EOS], (STOP, EOS)),
        ({}, 2, [9, EOS], (STOP, EOS)),
        ({}, 2, [EOS, 9], (None, None)),
        ({"ignore_eos": True}, 2, [EOS], (None, None)),
        ({"stop_token_ids": frozenset({HALT})}, 2, [HALT], (STOP, HALT)),
        ({"stop_token_ids": frozenset({HALT})}, 2, [EOS], (STOP, EOS)),
        ({"stop_token_ids": frozenset({HALT}), "ignore_eos": True}, 2, [HALT], (STOP, HALT)),
        ({"stop_token_ids": frozenset({EOS}), "ignore_eos": True}, 2, [EOS], (STOP, EOS)),
        ({"min_tokens": 2}, 2, [EOS], (None, None)),
        ({"min_tokens": 2}, 2, [EOS, 9], (None, None)),
        ({"min_tokens": 2}, 2, [9, EOS], (STOP, EOS)),
        ({"min_tokens": 2, "stop_token_ids": frozenset({HALT})}, 2, [HALT], (None, None)),
        ({"max_tokens": 1}, 2, [9], (LENGTH, None)),
        ({"max_tokens": 1}, 2, [EOS], (STOP, EOS)),
        ({"max_tokens": 3}, 2, [9, 9], (None, None)),
        ({"max_tokens": 3}, 2, [9, 9, 9], (LENGTH, None)),
        ({"max_tokens": 3, "min_tokens": 3}, 2, [9, 9, EOS], (STOP, EOS)),
        # The window holds 8: under STOP prompt and output end together with it.
        ({"max_tokens": 99}, 6, [9], (None, None)),
        ({"max_tokens": 99}, 6, [9, 9], (LENGTH, None)),
        ({"max_tokens": 99}, 6, [9, EOS], (STOP, EOS)),
        ({"max_tokens": 99, "min_tokens": 99}, 6, [9, EOS], (LENGTH, None)),
        ({"max_tokens": 99, "context_overflow": ContextOverflow.SLIDE}, 6, [9] * 20, (None, None)),
        ({"max_tokens": 20, "context_overflow": ContextOverflow.SLIDE}, 6, [9] * 20, (LENGTH, None)),
        ({"max_tokens": 99, "context_overflow": ContextOverflow.SLIDE}, 20, [EOS], (STOP, EOS)),
    ],
)
def test_what_ends_a_request(
    rules: dict[str, object],
    prompt_len: int,
    tokens: list[int],
    expected: tuple[FinishReason | None, int | None],
) -> None:
    sequence = Sequence(request(prompt_len, **rules), max_seq_len=8)
    for token in tokens:
        sequence.append(token)
    assert sequence.finish_reason() == expected
    assert sequence.num_output_tokens == len(tokens)


def test_an_eos_in_the_prompt_ends_nothing() -> None:
    sequence = Sequence(Request("r", (EOS, EOS), SamplingParams(), request().stop), 8)
    sequence.append(9)
    assert sequence.finish_reason() == (None, None)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 40))
def test_the_window_is_the_last_tokens(max_seq_len: int, prompt_len: int, num_tokens: int) -> None:
    sequence = Sequence(request(prompt_len), max_seq_len)
    known = list(range(10, 10 + prompt_len))
    for token in range(100, 100 + num_tokens):
        sequence.num_computed = sequence.context_len
        full = sequence.context_len == max_seq_len
        sequence.append(token)
        known.append(token)
        assert sequence.token_ids == known
        assert sequence.context(0, sequence.context_len) == known[-max_seq_len:]
        assert sequence.num_computed == (0 if full else sequence.context_len - 1)
    assert sequence.context_len == min(len(known), max_seq_len)
    assert sequence.context(1, 2) == known[-max_seq_len:][1:3]


def test_how_much_fits() -> None:
    assert max_output_tokens(request(6, max_tokens=99), 8) == 2
    assert max_output_tokens(request(6, max_tokens=1), 8) == 1
    assert max_output_tokens(request(8, max_tokens=1), 8) == 0
    assert max_output_tokens(request(20, max_tokens=9, context_overflow=ContextOverflow.SLIDE), 8) == 9


def test_timings_count_from_the_arrival() -> None:
    sequence = Sequence(replace(request(), arrival_time=100.0), 8)
    never_ran = sequence.last_output(103.0, reason=FinishReason.ABORT).timings
    assert never_ran is not None
    assert (never_ran.queue_time, never_ran.time_to_first_token, never_ran.total_time) == (3.0, 3.0, 3.0)
    sequence.first_scheduled, sequence.first_token = 101.0, 102.5
    done = sequence.last_output(104.0, (9,), STOP, 9)
    assert done.timings is not None
    assert (done.timings.queue_time, done.timings.time_to_first_token) == (1.0, 2.5)
    assert (done.timings.total_time, done.token_ids, done.stop_token_id) == (4.0, (9,), 9)
    assert done.is_last
