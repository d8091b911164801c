"""Attacks on the handshake of a stream: what was recorded, changed, cut off or reflected gets nobody in."""

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from expert_workers.transports.frame import VERSION
from expert_workers.transports.stream.auth import (
    _MAGIC,
    _MESSAGE,
    _PROOF,
    KEY_BYTES,
    _proof,
    _Status,
    prove_to_client,
    prove_to_server,
)
from expert_workers.transports.stream.connect import connect
from expert_workers.transports.stream.server import StreamServer
from moe_model.errors import ReplyError
from tests.expert_workers.fakes import make_config, make_worker, placed
from tests.expert_workers.stream_fakes import HOST, LIMITS, soon

CONFIG = make_config()
PLACEMENT = placed(2, 5, 1)
KEY = bytes(range(KEY_BYTES))
PADDING = range(5, 8)
Outcome = list[BaseException | None]


@contextmanager
def peer(
    prove: Callable[[socket.socket, bytes, float], None], timeout: float = 10.0
) -> Iterator[tuple[socket.socket, Outcome]]:
    """The other end of an honest one, and how the honest one fared once the block is left."""
    ours, theirs = socket.socketpair()
    outcome: Outcome = []

    def run() -> None:
        with theirs:
            try:
                prove(theirs, KEY, time.monotonic() + timeout)
            except (ReplyError, OSError) as error:
                outcome.append(error)
            else:
                outcome.append(None)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with ours:
            ours.settimeout(10)
            yield ours, outcome
    finally:
        thread.join()


def read(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := stream.recv(size - len(data))):
        data += part
    return data


def proof(hello: bytes, key: bytes = KEY) -> bytes:
    """What a client with the key answers."""
    nonce = secrets.token_bytes(32)
    return _PROOF.pack(_MAGIC, VERSION, nonce, _proof(key, b"client", _MESSAGE.unpack(hello)[3], nonce))


def answer_to(change: Callable[[bytes], bytes]) -> tuple[bytes, BaseException | None]:
    """A server's last message and outcome, for a right proof that was changed on its way."""
    with peer(prove_to_client) as (stream, outcome):
        stream.sendall(change(proof(read(stream, _MESSAGE.size))))
        stream.shutdown(socket.SHUT_WR)
        answer = read(stream, _MESSAGE.size)
    return answer, outcome[0]


def status_of(answer: bytes) -> int:
    status: int = _MESSAGE.unpack(answer)[2]
    return status


def test_the_right_proof_gets_in() -> None:
    answer, error = answer_to(lambda data: data)
    assert error is None
    assert status_of(answer) == _Status.OK


@pytest.mark.parametrize("index", [index for index in range(_PROOF.size) if index not in PADDING])
def test_a_proof_with_one_changed_bit_is_refused(index: int) -> None:
    answer, error = answer_to(lambda data: data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
    assert isinstance(error, ReplyError)
    assert answer == b"" or status_of(answer) != _Status.OK
    assert not answer or _MESSAGE.unpack(answer)[3] == bytes(32), "the refused are told no proof"


@pytest.mark.parametrize("size", [0, 1, 4, 5, 8, 39, 40, 71])
def test_a_proof_that_is_cut_off_is_refused(size: int) -> None:
    answer, error = answer_to(lambda data: data[:size])
    assert isinstance(error, ConnectionResetError)
    assert answer == b""


def test_a_recorded_proof_is_refused_on_another_connection() -> None:
    recorded: list[bytes] = []

    def record(data: bytes) -> bytes:
        recorded.append(data)
        return data

    answer, error = answer_to(record)
    assert error is None
    answer, error = answer_to(lambda _: recorded[0])
    assert str(error) == "has not the session key"
    assert status_of(answer) == _Status.KEY


@pytest.mark.parametrize("version", [0, VERSION - 1, VERSION + 1, 255])
def test_no_other_version_is_spoken_not_even_with_the_key(version: int) -> None:
    answer, error = answer_to(lambda data: data[:4] + bytes([version]) + data[5:])
    assert str(error) == f"speaks version {version}"
    assert status_of(answer) == _Status.VERSION


def test_a_client_is_not_talked_into_another_version() -> None:
    with peer(prove_to_server) as (stream, outcome):
        stream.sendall(_MESSAGE.pack(_MAGIC, VERSION - 1, _Status.OK, bytes(32)))
        stream.shutdown(socket.SHUT_WR)
        assert read(stream, 1) == b"", "it proves nothing to such a server"
    assert f"speaks version {VERSION - 1}" in str(outcome[0])


def test_a_server_cannot_send_the_clients_proof_back() -> None:
    with peer(prove_to_server) as (stream, outcome):
        stream.sendall(_MESSAGE.pack(_MAGIC, VERSION, _Status.OK, bytes(32)))
        _, _, _, theirs = _PROOF.unpack(read(stream, _PROOF.size))
        stream.sendall(_MESSAGE.pack(_MAGIC, VERSION, _Status.OK, theirs))
    assert "does not know its own session key" in str(outcome[0])


def test_who_sends_byte_by_byte_has_no_more_time_than_others() -> None:
    with peer(prove_to_client, timeout=0.3) as (stream, outcome):
        answer = iter(proof(read(stream, _MESSAGE.size)))
        stream.settimeout(0.1)
        started = time.monotonic()
        # It is reset when the server gives it up with bytes unread.
        with suppress(ConnectionError):
            while not outcome:
                stream.sendall(bytes([next(answer)]))
                with suppress(TimeoutError):
                    stream.recv(1)
        assert time.monotonic() - started < 60, "not as long as it goes on sending"
    assert isinstance(outcome[0], TimeoutError)


def test_a_refusal_is_logged_without_any_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = secrets.token_bytes(KEY_BYTES)
    server = StreamServer(make_worker(CONFIG, PLACEMENT, 0), HOST, limits=LIMITS)
    endpoint = server.endpoint
    with socket.create_connection((endpoint.host, endpoint.port), 10) as stream:
        with pytest.raises(ReplyError, match="refused the session key") as raised:
            prove_to_server(stream, wrong, soon())
        # It is logged before the connection is closed.
        assert stream.recv(1) == b""
    server.close()
    assert [record for record in caplog.records if "has not the session key" in record.getMessage()]
    shown = caplog.text + str(raised.value) + repr(endpoint) + repr(server)
    for key in (wrong, endpoint.key):
        for form in (key.hex(), repr(key), repr(key)[2:-1]):
            assert form not in shown


def test_a_process_that_starts_again_has_another_key() -> None:
    first, second = (StreamServer(make_worker(CONFIG, PLACEMENT, 0), HOST, limits=LIMITS) for _ in range(2))
    old = first.endpoint
    first.close()
    try:
        assert old.key != second.endpoint.key
        with pytest.raises(ReplyError, match="refused the session key"):
            connect(replace(second.endpoint, key=old.key), None, False, soon())
    finally:
        second.close()
