"""Admission: bounds at their edges, refusals at once, and nothing kept."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.requests.admission import Admission
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.config.service import AdmissionConfig


def test_sequences_are_bounded_and_come_back() -> None:
    admission = Admission(AdmissionConfig(max_requests=3, max_tokens=100))
    with admission.ticket() as first:
        first.take_sequences(2)
        with admission.ticket() as second, pytest.raises(ApiError) as caught:
            second.take_sequences(2)
        assert caught.value.reason is Reason.QUEUE_FULL
        assert caught.value.retry_after is not None
        assert caught.value.quota is not None
        with admission.ticket() as third:
            third.take_sequences(1)
            assert admission.num_sequences == 3
    assert admission.num_sequences == 0


def test_prompt_tokens_count_while_they_wait() -> None:
    admission = Admission(AdmissionConfig(max_requests=9, max_tokens=10))
    with admission.ticket() as first, admission.ticket() as second, admission.ticket() as third:
        first.wait_with(6)
        second.wait_with(4)
        with pytest.raises(ApiError, match="10 of 10 prompt tokens wait"):
            third.wait_with(1)
        first.started(6)
        third.wait_with(6)
        assert admission.num_waiting_tokens == 10
    assert admission.num_waiting_tokens == 0


def test_a_prompt_above_the_limit_is_taken_when_nobody_waits() -> None:
    admission = Admission(AdmissionConfig(max_tokens=10))
    with admission.ticket() as long, admission.ticket() as short:
        long.wait_with(1000)
        with pytest.raises(ApiError):
            short.wait_with(1)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 20), st.booleans()), max_size=20))
def test_whatever_happens_everything_comes_back(moves: list[tuple[int, int, bool]]) -> None:
    admission = Admission(AdmissionConfig(max_requests=5, max_tokens=30))
    open_tickets = []
    for sequences, tokens, starts in moves:
        context = admission.ticket()
        ticket = context.__enter__()
        open_tickets.append(context)
        try:
            ticket.take_sequences(sequences)
            ticket.wait_with(tokens)
        except ApiError:
            open_tickets.pop().__exit__(None, None, None)
        if starts:
            ticket.started(tokens if open_tickets and open_tickets[-1] is context else 0)
        assert 0 <= admission.num_sequences <= 5
    for context in open_tickets:
        context.__exit__(None, None, None)
    assert (admission.num_sequences, admission.num_waiting_tokens) == (0, 0)


def test_a_full_queue_refuses_within_a_blink() -> None:
    admission = Admission(AdmissionConfig(max_requests=1))
    with admission.ticket() as holder:
        holder.take_sequences(1)
        started = time.perf_counter()
        for _ in range(1000):
            with admission.ticket() as ticket, pytest.raises(ApiError):
                ticket.take_sequences(1)
        assert (time.perf_counter() - started) / 1000 < 0.01
