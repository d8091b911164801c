"""Hostile workers, and something else than a worker, at the other end of a stream."""

import socket
import struct
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expert_workers.transports.base import Failure, FailureReason, WorkerFailureError
from expert_workers.transports.frame import (
    HEADER,
    call_frame,
    encode,
    error_frame,
    ping_frame,
    pong_frame,
    read_header,
    reply_frame,
)
from expert_workers.transports.stream.auth import Endpoint, prove_to_client
from expert_workers.transports.stream.connect import connect, open_link
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.wire import ExpertReply, Pong
from moe_model.errors import ReplyError
from tests.examples import examples
from tests.expert_workers.stream_fakes import HOST, make_call, soon


def rogue(answer: bytes) -> tuple[StreamConnection, socket.socket]:
    """A connection to a worker that says just this."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 5, 0))
    theirs.sendall(answer)
    return StreamConnection(7, ours, 1), theirs


REPLY = encode(reply_frame(ExpertReply(1, 0, 0, 0, np.ones((2, 4), np.float32), 0.0)))


@pytest.mark.parametrize(
    ("answer", "reason", "message"),
    [
        (b"garbage" * 20, FailureReason.INVALID, "not version 3 of the data plane"),
        (b"EM\x04" + REPLY[3:], FailureReason.INVALID, "not version 3"),
        (
            REPLY[:8] + struct.pack("<Q", 1 << 40) + REPLY[16:],
            FailureReason.INVALID,
            "longer than any may be",
        ),
        (REPLY[:8] + struct.pack("<Q", 1 << 29) + REPLY[16:], FailureReason.INVALID, "expected 32"),
        (REPLY[:40] + struct.pack("<I", 9) + REPLY[44:], FailureReason.INVALID, "expected 32"),
        (encode(call_frame(make_call(1))), FailureReason.INVALID, "a call where a reply was expected"),
        (encode(error_frame(1, "no\nway \x1b[2J")), FailureReason.RAISED, "worker 7: no way"),
        (REPLY[:70], FailureReason.DIED, "worker 7: its stream is closed"),
        (b"", FailureReason.DIED, "its stream is closed"),
    ],
    ids=["garbage", "version", "length", "size", "rows", "a call", "error", "cut off", "closed"],
)
def test_an_answer_that_is_none_is_a_failure(answer: bytes, reason: FailureReason, message: str) -> None:
    connection, theirs = rogue(answer)
    pending = connection.send(make_call(1))
    theirs.shutdown(socket.SHUT_WR)
    while pending.outcome is None:
        connection.receive()
    assert isinstance(pending.outcome, Failure)
    assert pending.outcome.reason is reason
    assert message in pending.outcome.message
    assert pending.outcome.message.isprintable()
    connection.close()
    theirs.close()


@settings(max_examples=examples(50))
@given(st.binary(max_size=300), st.integers(0, 100))
def test_whatever_a_worker_says_the_call_ends(data: bytes, cut: int) -> None:
    connection, theirs = rogue(REPLY[:cut] + data)
    pending = connection.send(make_call(1))
    theirs.close()
    while pending.outcome is None:
        connection.receive()
    connection.close()


def test_a_reply_in_pieces_and_one_that_nobody_waits_for() -> None:
    other = encode(reply_frame(ExpertReply(99, 0, 0, 0, np.ones((500, 4), np.float32), 0.0)))
    connection, theirs = rogue(other[:1000])
    pending = connection.send(make_call(1))
    for part in (other[1000:], REPLY[:10], REPLY[10:80], REPLY[80:]):
        connection.receive()
        theirs.sendall(part)
    while pending.outcome is None:
        connection.receive()
    assert isinstance(pending.outcome, ExpertReply)
    assert connection.is_idle
    connection.close()
    theirs.close()


PING = read_header(encode(ping_frame(5, 3)))
PONG = encode(pong_frame(PING))


def test_a_ping_is_answered_among_calls_and_a_pong_that_nobody_waits_for_is_dropped() -> None:
    connection, theirs = rogue(encode(pong_frame(PING._replace(call_id=77))) + PONG + REPLY)
    call, ping = connection.send(make_call(1)), connection.ping(5, 3)
    while call.outcome is None or ping.outcome is None:
        connection.receive()
    assert ping.outcome == Pong(5, 3)
    assert isinstance(call.outcome, ExpertReply)
    assert connection.is_idle
    assert read_header(theirs.recv(1 << 12)[-HEADER.size :]).kind == PING.kind
    connection.close()
    assert isinstance(connection.ping(6).outcome, Failure)
    theirs.close()


@pytest.mark.parametrize(
    ("sends", "answer"),
    [
        (False, encode(reply_frame(ExpertReply(5, 0, 0, 0, np.ones((0, 4), np.float32), 0.0)))),
        (False, encode(reply_frame(ExpertReply(5, 0, 0, 0, np.ones((0, 0), np.float32), 0.0)))),
        (True, PONG),
        (False, encode(ping_frame(5, 3))),
    ],
    ids=["a reply to a ping", "an empty one", "a pong to a call", "a ping"],
)
def test_the_wrong_kind_of_answer_is_invalid(sends: bool, answer: bytes) -> None:
    connection, theirs = rogue(answer)
    pending = connection.send(make_call(5)) if sends else connection.ping(5, 3)
    theirs.shutdown(socket.SHUT_WR)
    while pending.outcome is None:
        connection.receive()
    assert isinstance(pending.outcome, Failure)
    assert pending.outcome.reason is FailureReason.INVALID
    theirs.close()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(40), "is no expert worker's data plane"),
        (b"EMHS\x09" + bytes(60), "speaks version 9 of the data plane, expected 3"),
        (b"EMHS\x03\x00" + bytes(34) + b"EMHS\x03\x00" + bytes(34), "does not know its own session key"),
        (b"EMHS\x03\x00" + bytes(34) + b"EMHS\x03\x07" + bytes(34), "refused"),
    ],
    ids=["http", "version", "no key", "status"],
)
def test_something_else_at_a_worker_s_address_is_named(answer: bytes, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def behave() -> None:
            stream, _ = listener.accept()
            with stream, suppress(OSError):
                stream.sendall(answer)
                stream.recv(1 << 10)

        thread = threading.Thread(target=behave)
        thread.start()
        port = listener.getsockname()[1]
        endpoint = Endpoint(1, "elsewhere", "\0none", "127.0.0.1", port, False, bytes(32))
        with pytest.raises(ReplyError, match=message):
            connect(endpoint, None, True, soon())
        thread.join()


def test_a_worker_that_is_not_there_is_a_failure_and_not_a_wait() -> None:
    gone = Endpoint(1, "elsewhere", "\0none", HOST, 1, False, bytes(32))
    with pytest.raises(WorkerFailureError) as raised:
        open_link(3, gone, None, True, 10.0)
    message = "worker 3: its stream cannot be reached: Connection refused"
    assert raised.value.failure == Failure(FailureReason.DIED, message)


def test_a_worker_that_says_nothing_in_the_handshake_keeps_nobody_waiting() -> None:
    with socket.create_server((HOST, 0)) as silent:
        endpoint = Endpoint(1, "", "\0none", HOST, silent.getsockname()[1], False, bytes(32))
        started = time.monotonic()
        with pytest.raises(WorkerFailureError, match=r"^worker 3: "):
            open_link(3, endpoint, None, True, 0.1)
        assert 0.1 <= time.monotonic() - started < 5


def test_the_first_failure_of_a_link_stays() -> None:
    connection, theirs = rogue(b"")
    pending = connection.send(make_call(1))
    connection.fail(FailureReason.LATE, "no answer in time")
    connection.fail(FailureReason.DIED, "gone")
    connection.close()
    late = Failure(FailureReason.LATE, "worker 7: no answer in time")
    assert pending.outcome == connection.failure == connection.send(make_call(2)).outcome == late
    theirs.close()


def test_a_look_takes_what_has_come_and_waits_for_nothing() -> None:
    connection, theirs = rogue(b"")
    pending = connection.send(make_call(1))
    connection.look()
    assert pending.outcome is None
    theirs.sendall(REPLY)
    connection.look()
    assert isinstance(pending.outcome, ExpertReply)
    theirs.shutdown(socket.SHUT_WR)
    connection.look()
    assert connection.failure == Failure(FailureReason.DIED, "worker 7: its stream is closed")
    theirs.close()


def test_both_ends_of_a_handshake_agree() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"EMHS\x03\x00\x00\x00" + bytes(64))
        with pytest.raises(ReplyError, match="has not the session key"):
            prove_to_client(ours, bytes(32), soon())
