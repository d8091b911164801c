"""A line for each request, and under overload for some refusals of each second."""

import logging

import pytest

from coordinator.api.requests.responses import Caller, Facts
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.api.shared.request_log import MAX_REFUSALS, RequestLog

FULL = ApiError.of(Reason.QUEUE_FULL, "the queue is full")


class Clock:
    """Stands until it is moved."""

    now = 50.25

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


def test_refusals_of_a_second_are_some_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    log = RequestLog(clock)
    for number in range(MAX_REFUSALS + 7):
        log.finished(Caller(f"r{number}"), Facts(), FULL, cancelled=False)
    told = lines(caplog)
    assert len(told) == MAX_REFUSALS
    assert not any("refusals_left_out" in line for line in told)
    clock.now += 1
    log.finished(Caller("next"), Facts(), FULL, cancelled=False)
    log.finished(Caller("another"), Facts(), FULL, cancelled=False)
    first, second = lines(caplog)
    assert "refusals_left_out=7" in first
    assert "refusals_left_out" not in second


def test_all_else_is_a_line_each(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log = RequestLog(Clock())
    for error in (None, ApiError.of(Reason.INVALID_FIELD, "no"), ApiError.of(Reason.QUOTA_EXCEEDED, "no")):
        for number in range(MAX_REFUSALS + 1):
            log.finished(Caller(f"r{number}"), Facts(), error, cancelled=False)
    assert len(lines(caplog)) == 3 * (MAX_REFUSALS + 1)


@pytest.mark.parametrize(
    ("peer", "shown"),
    [("ipv4:1.2.3.4:5", "ipv4:1.2.3.4:5"), ("a b", '"a b"'), ('a"\\', r'"a\"\\"'), ("é", "é")],
)
def test_a_value_with_anything_odd_is_quoted(peer: str, shown: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    RequestLog(Clock()).finished(Caller("r", peer=peer), Facts(), None, cancelled=False)
    assert f" peer={shown} " in lines(caplog)[0]
