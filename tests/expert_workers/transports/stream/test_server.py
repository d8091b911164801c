"""Hostile peers of a stream server."""

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from expert_workers.transports.frame import (
    ERROR,
    HEADER,
    PONG,
    REPLY,
    call_frame,
    encode,
    error_frame,
    ping_frame,
    pong_frame,
    read_header,
)
from expert_workers.transports.stream.connect import connect
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.wire import ExpertReply
from moe_model.errors import ReplyError
from moe_model.kernels.choice import choose_kernels
from tests.expert_workers.fakes import dealt, make_config, make_worker
from tests.expert_workers.stream_fakes import FakeMachine, make_call, running, soon
from tests.native import KERNELS

CONFIG = make_config()
PLACEMENT = dealt(2, 5, 2)


@pytest.fixture(params=KERNELS)
def served(request: pytest.FixtureRequest) -> Iterator[FakeMachine]:
    kernels = choose_kernels(request.param, "cpu")
    with running({0: make_worker(CONFIG, PLACEMENT, 0, kernels=kernels)}) as machine:
        yield machine


def raw(machine: FakeMachine) -> socket.socket:
    endpoint = machine.server(0).endpoint
    stream = socket.create_connection((endpoint.host, endpoint.port), 5)
    stream.settimeout(5)
    return stream


def proven(machine: FakeMachine) -> socket.socket:
    stream = connect(machine.server(0).endpoint, None, False, soon())
    assert isinstance(stream, socket.socket)
    stream.settimeout(5)
    return stream


def is_closed(stream: socket.socket) -> bool:
    try:
        while stream.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def still_serves(machine: FakeMachine) -> bool:
    stream = connect(machine.server(0).endpoint, None, False, soon())
    connection = StreamConnection(0, stream, 1)
    pending = connection.send(make_call(1, width=16))
    while pending.outcome is None:
        connection.receive()
    connection.close()
    return isinstance(pending.outcome, ExpertReply)


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n" * 10, bytes(200), b"EMHS\x03" + bytes(200), b"EMHS\x01" + bytes(67), b"EM"],
    ids=["http", "zeros", "wrong proof", "old version", "cut off"],
)
def test_a_peer_that_proves_nothing_is_cut_off(served: FakeMachine, data: bytes) -> None:
    with raw(served) as stream:
        stream.sendall(data)
        assert is_closed(stream)
    assert still_serves(served)


def test_a_peer_that_says_nothing_is_cut_off_in_time(served: FakeMachine) -> None:
    with raw(served) as stream:
        started = time.monotonic()
        assert is_closed(stream)
        assert time.monotonic() - started < 60
    assert still_serves(served)


def test_handshakes_are_bounded(served: FakeMachine) -> None:
    endpoint = served.server(0).endpoint
    silent = [raw(served) for _ in range(3)]
    for stream in silent:
        assert stream.recv(1)
    with pytest.raises(ReplyError, match="has too many connections"):
        connect(endpoint, None, False, soon())
    for stream in silent:
        stream.close()


def test_the_wrong_key_is_refused_on_both_ways(served: FakeMachine) -> None:
    endpoint = replace(served.server(0).endpoint, key=bytes(32))
    for use_unix in (True, False):
        with pytest.raises(ReplyError, match="refused the session key"):
            connect(endpoint, None, use_unix, soon())
    assert still_serves(served)


def test_the_key_is_not_shown(served: FakeMachine) -> None:
    endpoint = served.server(0).endpoint
    assert len(endpoint.key) == 32
    assert repr(endpoint.key) not in repr(endpoint)


FRAME = encode(call_frame(make_call(1, width=16)))


@pytest.mark.parametrize(
    "frame",
    [
        b"XX" + FRAME[2:],
        b"EM\x01" + FRAME[3:],
        FRAME[:8] + struct.pack("<Q", 1 << 40) + FRAME[16:],
        FRAME[:3] + b"\x09" + FRAME[4:],
        encode(error_frame(1, "x")),
    ],
    ids=["magic", "version", "length", "kind", "an error"],
)
def test_what_is_no_frame_ends_its_connection_only(served: FakeMachine, frame: bytes) -> None:
    with proven(served) as stream:
        stream.sendall(frame)
        assert is_closed(stream)
    assert still_serves(served)


@pytest.mark.parametrize("offset", [36, 40, 44, 48])
def test_sizes_that_contradict_each_other_are_an_error_of_that_call(served: FakeMachine, offset: int) -> None:
    with proven(served) as stream:
        stream.sendall(FRAME[:offset] + struct.pack("<I", 2**32 - 1) + FRAME[offset + 4 :] + FRAME)
        first = stream.recv(HEADER.size, socket.MSG_WAITALL)
        header = read_header(first)
        assert (header.kind, header.call_id) == (3, 1)
        assert b"body has" in stream.recv(header.body_bytes, socket.MSG_WAITALL)
        assert read_header(stream.recv(HEADER.size, socket.MSG_WAITALL)).kind == 2


def test_a_frame_may_come_byte_by_byte_and_two_at_once(served: FakeMachine) -> None:
    with proven(served) as stream:
        for byte in FRAME[:100]:
            stream.sendall(bytes((byte,)))
        stream.sendall(FRAME[100:] + FRAME + FRAME[:30])
        stream.sendall(FRAME[30:])
        for _ in range(3):
            header = read_header(stream.recv(HEADER.size, socket.MSG_WAITALL))
            assert header.kind == 2
            assert len(stream.recv(header.body_bytes, socket.MSG_WAITALL)) == header.body_bytes


def test_a_ping_is_answered_between_calls_and_its_answer_is_no_call(served: FakeMachine) -> None:
    with proven(served) as stream:
        stream.sendall(FRAME + encode(ping_frame(7, 9)) + FRAME)
        kinds = []
        for _ in range(3):
            header = read_header(stream.recv(HEADER.size, socket.MSG_WAITALL))
            kinds.append((header.kind, header.call_id, header.epoch))
            stream.recv(header.body_bytes, socket.MSG_WAITALL)
        assert kinds == [(REPLY, 1, 0), (PONG, 7, 9), (REPLY, 1, 0)]
        stream.sendall(encode(pong_frame(header._replace(call_id=8))))
        refused = read_header(stream.recv(HEADER.size, socket.MSG_WAITALL))
        assert (refused.kind, refused.call_id) == (ERROR, 8)


def test_a_call_of_a_coordinator_that_was_replaced_is_refused_by_name(served: FakeMachine) -> None:
    worker = served.worker(0)
    with proven(served) as stream:
        stream.sendall(FRAME)
        header = read_header(stream.recv(HEADER.size, socket.MSG_WAITALL))
        assert header.kind == REPLY
        stream.recv(header.body_bytes, socket.MSG_WAITALL)
        worker.claim("a coordinator", 2)
        stream.sendall(FRAME)
        header = read_header(stream.recv(HEADER.size, socket.MSG_WAITALL))
        text = stream.recv(header.body_bytes, socket.MSG_WAITALL).decode()
        assert text == "worker 0: epoch 0 is over: a coordinator of epoch 2 has taken over"
