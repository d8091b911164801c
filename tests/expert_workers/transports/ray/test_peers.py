"""What another machine lends is what was asked for, as it was sent, or nothing."""

import pytest

from expert_workers.transports.ray.peers import checked, summed

RANGES = [(0, 3), (10, 12)]
LENT = summed([b"abc", b"xy"]) or []


def test_what_arrives_as_it_was_sent_is_taken() -> None:
    assert checked(LENT, RANGES) == [b"abc", b"xy"]
    assert summed(None) is None
    assert checked(None, RANGES) is None


@pytest.mark.parametrize(
    "found",
    [
        [],
        LENT[:1],
        [LENT[0], (b"xz", LENT[1][1])],
        [LENT[0], (b"xyz", LENT[1][1])],
        [LENT[0], b"xy"],
        [LENT[0], ("xy", LENT[1][1])],
        "xy",
    ],
)
def test_anything_else_is_not(found: object) -> None:
    assert checked(found, RANGES) is None
