"""How fast bytes may be taken, by a clock that the test moves."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from moe_model.errors import ConfigError, HaltedError
from moe_model.halt import Halt
from moe_model.remote.token_bucket import TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_limit_nothing_waits() -> None:
    bucket = TokenBucket()
    for _ in range(1000):
        bucket.take(1 << 40, Halt())


def test_a_rate_is_kept() -> None:
    bucket, started = TokenBucket(10_000), time.monotonic()
    for _ in range(6):
        bucket.take(500, Halt())
    # The first is free, and each has its time before the next.
    assert 0.25 <= time.monotonic() - started < 2


def test_threads_share_it() -> None:
    bucket, started = TokenBucket(10_000), time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: bucket.take(500, Halt()), range(6)))
    assert time.monotonic() - started >= 0.25


@pytest.mark.parametrize("new", [None, 1e9])
def test_a_new_limit_counts_for_one_that_waits(new: float | None) -> None:
    bucket = TokenBucket(1)
    bucket.take(1000, Halt())
    timer = threading.Timer(0.05, bucket.limit, [new])
    timer.start()
    bucket.take(1, Halt())
    timer.join()
    assert bucket.bytes_per_second == new


def test_a_lower_limit_makes_it_wait_longer() -> None:
    clock = Clock()
    bucket = TokenBucket(100, clock)
    bucket.take(100, Halt())
    bucket.limit(10)
    clock.now = 9.0
    halt = Halt()
    halt.set()
    with pytest.raises(HaltedError):
        bucket.take(1, halt)
    clock.now = 10.1
    bucket.take(1, Halt())


def test_a_wait_ends_with_a_halt() -> None:
    bucket, halt = TokenBucket(1), Halt()
    bucket.take(1000, halt)
    threading.Timer(0.05, halt.set).start()
    with pytest.raises(HaltedError):
        bucket.take(1, halt)


@pytest.mark.parametrize("rate", [0, -1.0, float("nan")])
def test_limits_that_are_none(rate: float) -> None:
    with pytest.raises(ConfigError, match="bytes_per_second"):
        TokenBucket(rate)
