"""What a key may ask for, to the edge and one past it."""

from contextlib import ExitStack

import pytest

from coordinator.api.security.quotas import KeyQuotas, NoQuotas
from coordinator.api.shared.errors import ApiError, Reason
from coordinator.config.key_limits import Limits
from tests.coordinator.api.clock import Clock


class Given:
    """Limits that a test sets."""

    def __init__(self, **limits: Limits) -> None:
        self.limits = limits

    def __call__(self, key_id: str) -> Limits:
        return self.limits.get(key_id, Limits())


def quotas(clock: Clock, **limits: Limits) -> KeyQuotas:
    return KeyQuotas(Given(**limits), clock)


def ask(found: KeyQuotas, key_id: str = "a") -> None:
    with found.enter(key_id):
        pass


def refused(found: KeyQuotas, key_id: str = "a") -> ApiError:
    with pytest.raises(ApiError) as caught, found.enter(key_id):
        pass
    assert caught.value.reason is Reason.QUOTA_EXCEEDED
    return caught.value


def test_requests_at_once() -> None:
    found = quotas(Clock(), a=Limits(concurrent=2))
    with found.enter("a"):
        with found.enter("a"):
            error = refused(found)
            assert error.quota is not None
            assert "2 requests at once" in error.message
            ask(found, "b")
        ask(found)
    ask(found)


def test_a_place_is_given_back_whatever_happens() -> None:
    found = quotas(Clock(), a=Limits(concurrent=1))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), found.enter("a"):
            raise ZeroDivisionError
    ask(found)


def test_requests_per_second() -> None:
    clock = Clock()
    found = quotas(clock, a=Limits(rps=4))
    for _ in range(4):
        ask(found)
    assert refused(found).retry_after == pytest.approx(0.25)
    clock.now += 0.24
    refused(found)
    clock.now += 0.02
    ask(found)
    refused(found)
    clock.now += 100
    for _ in range(4):
        ask(found)
    refused(found)


def test_less_than_one_request_per_second() -> None:
    clock = Clock()
    found = quotas(clock, a=Limits(rps=0.1))
    ask(found)
    assert refused(found).retry_after == pytest.approx(10)
    clock.now += 10.01
    ask(found)


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    found = quotas(clock, a=Limits(rps=1, tokens_per_minute=60))
    ask(found)
    found.spent("a", 1)
    for _ in range(100):
        refused(found)
    clock.now += 1.01
    ask(found)


def test_tokens_per_minute_are_paid_afterwards() -> None:
    clock = Clock()
    found = quotas(clock, a=Limits(tokens_per_minute=600))
    ask(found)
    found.spent("a", 599)
    ask(found)
    found.spent("a", 101)
    # 100 below nothing, and 1 is needed: 101 tokens at 10 a second.
    assert refused(found).retry_after == pytest.approx(10.1)
    ask(found, "b")
    clock.now += 10.2
    ask(found)
    # An idle hour saves no more than a minute's worth.
    clock.now += 3600
    found.spent("a", 599)
    ask(found)
    found.spent("a", 1)
    refused(found)


def test_limits_change_while_requests_run() -> None:
    clock, given = Clock(), Given()
    found = KeyQuotas(given, clock)
    found.spent("a", 1_000_000)
    with ExitStack() as held:
        held.enter_context(found.enter("a"))
        given.limits = {"a": Limits(concurrent=1, tokens_per_minute=60)}
        refused(found)
    # What was spent while there was no limit does not count.
    ask(found)


def test_without_keys_there_is_no_limit() -> None:
    found = NoQuotas()
    with ExitStack() as held:
        for _ in range(1000):
            held.enter_context(found.enter(""))
            found.spent("", 1_000_000)
