import time
from dataclasses import replace
from typing import Any

import pytest

from expert_workers.members import Expected, Members, introduce, mismatch
from expert_workers.placement import place
from expert_workers.transport import Failure, FailureReason
from moe_model.errors import WorkerStartError
from tests.expert_workers.fakes import FakeTransport, make_config, make_worker

CONFIG = make_config()
PLACEMENT = place(2, 5, 2)
EXPECTED = Expected("float32", "sums")
DIED = Failure(FailureReason.DIED, "died")
LATE = Failure(FailureReason.LATE, "late")


def make_members(retry_interval: float) -> tuple[Members, FakeTransport]:
    transport = FakeTransport({rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)})
    infos = introduce(PLACEMENT, transport, EXPECTED, time.monotonic() + 1)
    transport.num_describes = 0
    return Members(PLACEMENT, transport, infos, EXPECTED, retry_interval), transport


def test_a_lost_worker_is_not_asked_before_its_time() -> None:
    members, transport = make_members(retry_interval=60.0)
    members.lose(1, DIED)
    assert members.live == {0}
    assert members.poll() == frozenset()
    assert transport.num_describes == 0


def test_nobody_is_asked_while_all_are_live() -> None:
    members, transport = make_members(retry_interval=0.0)
    assert members.poll() == frozenset()
    assert members.revive(time.monotonic() + 60) == frozenset()
    assert transport.num_describes == 0


def test_a_probe_that_hangs_stays_out_and_is_not_repeated() -> None:
    members, transport = make_members(retry_interval=0.0)
    transport.describes[1] = lambda info: LATE
    members.lose(1, LATE)
    for _ in range(3):
        assert members.poll() == frozenset()
    assert transport.num_describes == 1


def test_a_probe_that_fails_is_repeated() -> None:
    members, transport = make_members(retry_interval=0.0)
    transport.describes[1] = lambda info: DIED
    members.lose(1, DIED)
    members.poll()
    transport.describes.clear()
    assert members.poll() == {1}
    assert members.live == {0, 1}
    assert transport.num_describes == 2


def test_revive_waits_for_the_worker_and_not_longer() -> None:
    members, transport = make_members(retry_interval=0.02)
    transport.describes[1] = lambda info: DIED if transport.num_describes < 3 else info
    members.lose(1, DIED)
    started = time.monotonic()
    assert members.revive(started + 60) == {1}
    assert time.monotonic() - started < 10
    assert transport.num_describes == 3


def test_revive_ends_at_its_deadline() -> None:
    members, transport = make_members(retry_interval=0.01)
    transport.describes[1] = lambda info: DIED
    members.lose(1, DIED)
    started = time.monotonic()
    assert members.revive(started + 0.1) == frozenset()
    assert 0.1 <= time.monotonic() - started < 5


def test_a_worker_that_gave_an_invalid_reply_comes_back_only_as_another_process() -> None:
    members, transport = make_members(retry_interval=0.0)
    members.lose(1, Failure(FailureReason.INVALID, "not finite"))
    assert members.poll() == frozenset()
    transport.describes[1] = lambda info: replace(info, pid=info.pid + 1)
    assert members.poll() == {1}


def test_a_worker_that_now_holds_something_else_does_not_come_back() -> None:
    members, transport = make_members(retry_interval=0.0)
    transport.describes[1] = lambda info: replace(info, keys=info.keys[1:])
    members.lose(1, DIED)
    assert members.poll() == frozenset()


def test_a_closed_revive_returns_at_once() -> None:
    members, _ = make_members(retry_interval=60.0)
    members.lose(1, DIED)
    members.close()
    assert members.revive(time.monotonic() + 60) == frozenset()


def test_a_worker_that_does_not_answer_fails_the_start() -> None:
    transport = FakeTransport({rank: make_worker(CONFIG, PLACEMENT, rank) for rank in range(2)})
    transport.describes[1] = lambda info: replace(DIED, message="worker 1: died")
    with pytest.raises(WorkerStartError, match="worker 1: died"):
        introduce(PLACEMENT, transport, EXPECTED, time.monotonic() + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 4}, "worker 1: says it is worker 4"),
        ({"keys": ()}, "worker 1: holds other experts than its placement says"),
        ({"dtype": "bfloat16"}, "worker 1: computes in bfloat16, expected float32"),
        ({"fingerprint": "other"}, "worker 1: has loaded another checkpoint"),
    ],
)
def test_each_mismatch_is_named(change: dict[str, Any], message: str) -> None:
    info = make_worker(CONFIG, PLACEMENT, 1).describe()
    assert mismatch(PLACEMENT, EXPECTED, 1, info) == ""
    assert mismatch(PLACEMENT, EXPECTED, 1, replace(info, **change)) == message
