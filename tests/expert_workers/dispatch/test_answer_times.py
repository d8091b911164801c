"""How long each worker took, whichever of them is waited for first: in C, and in Python beside it."""

import socket
import threading
import time

import pytest

from expert_workers.dispatch.native_way import HAS_NATIVE
from expert_workers.transports.base import LentCall
from expert_workers.transports.frame import HEADER, call_frame, decode_call, encode, reply_frame
from expert_workers.transports.stream.plane import StreamPlane
from expert_workers.wire import ExpertCall, ExpertReply
from tests.expert_workers.dispatch.test_native_dispatch import (
    Lines,
    expected_calls,
    lines,
    plain,
    received,
    reply_to,
)
from tests.expert_workers.stream_fakes import make_call, streams
from tests.expert_workers.transports.stream.test_plane import Slow

if HAS_NATIVE:
    from expert_workers.dispatch.native import _dispatch

LATE = 0.2
needs_c = pytest.mark.skipif(not HAS_NATIVE, reason="built without a C compiler")


def answer(world: Lines, rank: int) -> float:
    """Reads a call and answers it; says when."""
    part, call = expected_calls(world.case)[rank]
    frame = received(world.peers[rank], len(encode(call_frame(call))))
    sent: ExpertCall = call._replace(call_id=decode_call(frame).call_id)
    world.peers[rank].sendall(encode(reply_frame(reply_to(part, sent, rank))))
    return time.perf_counter()


@needs_c
def test_a_quick_worker_s_time_is_not_that_of_a_slow_one_before_it() -> None:
    with lines(plain(ranks=(0, 1, 2))) as world:
        number = world.begin()
        began = time.perf_counter()
        quick = answer(world, 2) - began
        slow = threading.Timer(LATE, lambda: [answer(world, rank) for rank in (0, 1)])
        slow.start()
        assert world.finish(number) is not None
        slow.join()
        took = {rank: seconds for rank, _, seconds in _dispatch.take_samples(world.native)}
    assert took[2] < quick + LATE / 2
    assert min(took[0], took[1]) >= LATE * 0.9


@needs_c
def test_what_has_come_of_a_late_answer_and_when_is_handed_over() -> None:
    """The quick worker's is there; the slow one, which is waited for first, breaks off."""
    with lines(plain()) as world:
        number = world.begin()
        quick = answer(world, 1)
        slow = threading.Timer(LATE, lambda: world.peers[0].shutdown(socket.SHUT_RDWR))
        slow.start()
        assert world.finish(number) is None
        slow.join()
        [(_, _, _, _, calls)] = _dispatch.hand_over(world.native)
        arrived = {rank: at for rank, *_, at in calls}
    assert arrived[0] == 0.0
    assert 0.0 < arrived[1] < quick + LATE / 2


@pytest.mark.parametrize("arrived", [1.5, 0.0])
def test_an_answer_that_is_given_back_keeps_its_time(arrived: float) -> None:
    """Where it was not read by the borrower it has that of now."""
    part, call = expected_calls(plain(ranks=(0,)))[0]
    answered = encode(reply_frame(reply_to(part, call, 0)))
    with streams({0: Slow()}) as (links, _):
        frames = links[0].frames
        assert frames is not None
        began = time.perf_counter()
        lent = LentCall(call.call_id, len(answered) - HEADER.size, b"", answered, arrived)
        [pending] = frames.take_back([lent])
        assert isinstance(pending.outcome, ExpertReply)
        assert pending.arrived == arrived if arrived else pending.arrived >= began


def test_a_plane_reads_each_answer_when_it_comes() -> None:
    slow, quick = Slow(), Slow()
    quick.go.set()
    with streams({0: slow, 1: quick}) as (links, _):
        pendings = [links[rank].send(make_call(1, 50)) for rank in (0, 1)]
        timer = threading.Timer(LATE, slow.go.set)
        timer.start()
        StreamPlane().wait(pendings, time.monotonic() + 60)
        timer.join()
        assert pendings[0].arrived - pendings[1].arrived > LATE / 2
