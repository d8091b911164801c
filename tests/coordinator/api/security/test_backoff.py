"""Who has to wait after wrong keys, for how long, and who has not."""

import pytest

from coordinator.api.security.backoff import MAX_NAMES, Backoff, BackoffConfig, network_of
from tests.coordinator.api.clock import Clock

CONFIG = BackoffConfig(num_failures=3, window=60, first=1, longest=8, max_peers=4)
HERE, THERE = "ipv4:10.0.0.1:5", "ipv4:10.0.0.2:5"


def backoff(clock: Clock) -> Backoff:
    return Backoff(CONFIG, clock)


def fail(found: Backoff, times: int, peer: str = HERE) -> None:
    for _ in range(times):
        found.failed(peer)


def test_some_mistakes_are_free_and_more_are_not() -> None:
    found = backoff(Clock())
    fail(found, 2)
    assert found.wait(HERE, None) == 0
    fail(found, 1)
    assert found.wait(HERE, None) == 1
    assert found.wait("ipv4:10.0.0.1:6", None) == 1
    assert found.wait(THERE, None) == 0


def test_each_wait_is_twice_as_long_up_to_the_longest() -> None:
    clock = Clock()
    found = backoff(clock)
    fail(found, 2)
    waits = []
    for _ in range(6):
        fail(found, 1)
        waits.append(found.wait(HERE, None))
        clock.now += waits[-1]
        assert found.wait(HERE, None) == 0
    assert waits == [1, 2, 4, 8, 8, 8]


def test_quiet_forgets() -> None:
    clock = Clock()
    found = backoff(clock)
    fail(found, 4)
    clock.now += 63
    fail(found, 2)
    assert found.wait(HERE, None) == 0
    fail(found, 1)
    assert found.wait(HERE, None) == 1


def test_a_right_key_forgets_nothing() -> None:
    """Else whoever has one key could guess others for ever."""
    found = backoff(Clock())
    for _ in range(3):
        found.failed(HERE)
        found.succeeded(HERE, "mallory")
    assert found.wait(HERE, None) > 0
    assert found.wait(HERE, "alice") > 0


def test_who_has_got_in_from_there_is_not_locked_out() -> None:
    found = backoff(Clock())
    found.succeeded(HERE, "alice")
    fail(found, 100)
    assert found.wait(HERE, "alice") == 0
    assert found.wait(HERE, "bob") > 0
    assert found.wait(HERE, None) > 0


def test_memory_is_bounded() -> None:
    found = backoff(Clock())
    for number in range(1000):
        found.failed(f"10.0.{number // 250}.{number % 250}:1")
        found.succeeded("10.9.9.9:1", f"key{number}")
    assert len(found) == 4
    fail(found, 3, "10.9.9.9:1")
    known = [n for n in range(1000) if found.wait("10.9.9.9:1", f"key{n}") == 0]
    assert known == list(range(1000 - MAX_NAMES, 1000))


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        ("ipv4:127.0.0.1:4321", "127.0.0.1"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("ipv6:%5B2001:db8::1%5D:99", "2001:db8::/64"),
        ("ipv6:[2001:db8::2]:99", "2001:db8::/64"),
        ("[2001:db8::3]:99", "2001:db8::/64"),
        ("2001:db8:0:0:1:2:3:4", "2001:db8::/64"),
        ("2001:db8:0:1::", "2001:db8:0:1::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:9", "fe80::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("2001:db8::5:54321", "2001:db8::/64"),
        ("2001:db8:0:1:2:3:4:5:8080", "2001:db8:0:1::/64"),
        ("::1:50000", "::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:9", "10.0.0.7"),
        ("unix:/tmp/socket", ""),
        ("", ""),
        ("ipv4:999.1.1.1:1", ""),
    ],
)
def test_whom_an_address_stands_for(peer: str, network: str) -> None:
    assert network_of(peer) == network
