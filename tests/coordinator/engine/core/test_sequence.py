"""Sequence: the window, and the table of rules that end a request."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.core.sequence import Sequence, max_output_tokens
from coordinator.engine.messages.output import FinishReason, Stop
from coordinator.engine.messages.request import ContextOverflow, Request, StopRules
from moe_model.sampling.params import SamplingParams

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
EOS, HALT = 3, 7


def request(prompt_len: int = 2, **rules: object) -> Request:
    stop = replace(StopRules(max_tokens=5, eos_token_ids=frozenset({EOS})), **rules)  # type: ignore[arg-type]
    return Request("r", tuple(range(10, 10 + prompt_len)), SamplingParams(), stop)


@pytest.mark.parametrize(
    ("rules", "prompt_len", "tokens", "expected"),
    [
        ({}, 2, [9], (None, None)),
        ({}, 2, [EOS], (STOP, Stop(EOS))),
        ({}, 2, [9, EOS], (STOP, Stop(EOS))),
        ({}, 2, [EOS, 9], (None, None)),
        ({"ignore_eos": True}, 2, [EOS], (None, None)),
        ({"stop_token_ids": frozenset({HALT})}, 2, [HALT], (STOP, Stop(HALT))),
        ({"stop_token_ids": frozenset({HALT})}, 2, [EOS], (STOP, Stop(EOS))),
        ({"stop_token_ids": frozenset({HALT}), "ignore_eos": True}, 2, [HALT], (STOP, Stop(HALT))),
        ({"stop_token_ids": frozenset({EOS}), "ignore_eos": True}, 2, [EOS], (STOP, Stop(EOS))),
        ({"min_tokens": 2}, 2, [EOS], (None, None)),
        ({"min_tokens": 2}, 2, [EOS, 9], (None, None)),
        ({"min_tokens": 2}, 2, [9, EOS], (STOP, Stop(EOS))),
        ({"min_tokens": 2, "stop_token_ids": frozenset({HALT})}, 2, [HALT], (None, None)),
        ({"max_tokens": 1}, 2, [9], (LENGTH, None)),
        ({"max_tokens": 1}, 2, [EOS], (STOP, Stop(EOS))),
        ({"max_tokens": 3}, 2, [9, 9], (None, None)),
        ({"max_tokens": 3}, 2, [9, 9, 9], (LENGTH, None)),
        ({"max_tokens": 3, "min_tokens": 3}, 2, [9, 9, EOS], (STOP, Stop(EOS))),
        # The window holds 8: under STOP prompt and output end together with it.
        ({"max_tokens": 99}, 6, [9], (None, None)),
        ({"max_tokens": 99}, 6, [9, 9], (LENGTH, None)),
        ({"max_tokens": 99}, 6, [9, EOS], (STOP, Stop(EOS))),
        ({"max_tokens": 99, "min_tokens": 99}, 6, [9, EOS], (LENGTH, None)),
        ({"max_tokens": 99, "context_overflow": ContextOverflow.SLIDE}, 6, [9] * 20, (None, None)),
        ({"max_tokens": 20, "context_overflow": ContextOverflow.SLIDE}, 6, [9] * 20, (LENGTH, None)),
        ({"max_tokens": 99, "context_overflow": ContextOverflow.SLIDE}, 20, [EOS], (STOP, Stop(EOS))),
    ],
)
def test_what_ends_a_request(
    rules: dict[str, object],
    prompt_len: int,
    tokens: list[int],
    expected: tuple[FinishReason | None, Stop | None],
) -> None:
    sequence = Sequence(request(prompt_len, **rules), max_seq_len=8, block_size=4)
    for token in tokens:
        sequence.append(token)
    assert sequence.finish_reason() == expected
    assert sequence.num_output_tokens == len(tokens)


def test_an_eos_in_the_prompt_ends_nothing() -> None:
    sequence = Sequence(Request("r", (EOS, EOS), SamplingParams(), request().stop), 8, 4)
    sequence.append(9)
    assert sequence.finish_reason() == (None, None)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 40))
def test_the_window_is_the_last_tokens(max_seq_len: int, prompt_len: int, num_tokens: int) -> None:
    sequence = Sequence(request(prompt_len), max_seq_len, 4)
    known = list(range(10, 10 + prompt_len))
    for token in range(100, 100 + num_tokens):
        full = sequence.context_len == max_seq_len
        assert sequence.append(token) == full, "says when every cached key is void"
        known.append(token)
        assert sequence.token_ids == known
        assert sequence.context(0, sequence.context_len) == known[-max_seq_len:]
    assert sequence.context_len == min(len(known), max_seq_len)
    assert sequence.context(1, 2) == known[-max_seq_len:][1:3]


def test_how_much_fits() -> None:
    assert max_output_tokens(request(6, max_tokens=99), 8) == 2
    assert max_output_tokens(request(6, max_tokens=1), 8) == 1
    assert max_output_tokens(request(8, max_tokens=1), 8) == 0
    assert max_output_tokens(request(20, max_tokens=9, context_overflow=ContextOverflow.SLIDE), 8) == 9


def test_timings_count_from_the_arrival() -> None:
    sequence = Sequence(replace(request(), arrival_time=100.0), 8, 4)
    never_ran = sequence.timings(103.0)
    assert (never_ran.queue_time, never_ran.time_to_first_token, never_ran.total_time) == (3.0, 3.0, 3.0)
    sequence.first_scheduled, sequence.first_token = 101.0, 102.5
    done = sequence.timings(104.0)
    assert (done.queue_time, done.time_to_first_token, done.total_time) == (1.0, 2.5, 4.0)
