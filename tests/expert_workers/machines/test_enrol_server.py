"""The open port of a head, and who comes to it."""

import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

import pytest

from expert_workers.machines.certificates import new_key, request_for
from expert_workers.machines.enrol_server import MAX_OF_A_PEER
from moe_model.errors import ClusterError
from tests.expert_workers.machines.made import HEAD, HOST, Enrolling, a_request, enrolling

ENOUGH = 10.0


def anything() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    return made


def tls(head: Enrolling) -> ssl.SSLSocket:
    plain = socket.create_connection((HOST, head.port), ENOUGH)
    return anything().wrap_socket(plain)


def answer(connection: socket.socket) -> bytes:
    """All that the head says until it leaves."""
    found = b""
    with suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(65536):
            found += part
    return found


def test_a_joiner_is_answered(tmp_path: Path) -> None:
    with enrolling(tmp_path / "head") as head:
        client = head.client()
        client.trust()
        assert client.enrol(a_request(request_for(new_key()))).head == HEAD
        assert client.bytes_per_second() > 1e6


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 512,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_garbage_in_the_place_of_tls(tmp_path: Path, data: bytes) -> None:
    with enrolling(tmp_path / "head") as head:
        with socket.create_connection((HOST, head.port), ENOUGH) as connection:
            connection.sendall(data)
            answer(connection)
        head.client().trust()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff" * 50 + b"\r\n\r\n",
        b"GET /v1/ca HTTP/1.1\r\n" + b"x: y\r\n" * 20000 + b"\r\n",
        b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nContent-Length: 40000\r\n\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"POST /v1/enrol HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\nContent-Length: 2\r\n\r\n{}",
        b"BREW /v1/ca HTTP/1.1\r\n\r\n",
    ],
)
def test_hostile_requests_end_and_the_next_is_answered(tmp_path: Path, data: bytes) -> None:
    with enrolling(tmp_path / "head") as head:
        with tls(head) as connection:
            with suppress(ConnectionError, ssl.SSLError):
                connection.sendall(data)
            said = answer(connection)
        assert not said.startswith(b"HTTP/1.0 200"), said
        head.client().trust()


def test_a_slow_peer_ends_with_its_deadline(tmp_path: Path) -> None:
    """A byte now and then, which keeps no connection."""
    with enrolling(tmp_path / "head", seconds=0.5) as head:
        started = time.monotonic()
        with tls(head) as connection:
            connection.settimeout(0.05)
            assert drip(connection, b"GET /v1/ca HTTP/1.1\r\nx: " + b"a" * 4000) < 1000
        assert 0.4 < time.monotonic() - started < ENOUGH


def drip(connection: socket.socket, data: bytes) -> int:
    """Bytes that were sent, one for each timeout, until the head left.

    By one thread: a TLS connection of Python's is not for two.
    """
    for sent, byte in enumerate(data):
        try:
            connection.send(bytes((byte,)))
            if connection.recv(100) == b"":
                return sent
        except TimeoutError:
            continue
        except OSError:
            return sent
    return len(data)


def test_silent_peers_do_not_keep_others_out_for_long(tmp_path: Path) -> None:
    """A peer has so many connections and no more, and each ends."""
    with enrolling(tmp_path / "head", seconds=1.0) as head:
        silent = [socket.create_connection((HOST, head.port), ENOUGH) for _ in range(3 * MAX_OF_A_PEER)]
        try:
            with pytest.raises(ClusterError):
                head.client().trust()
            elsewhere = socket.create_connection((HOST, head.port), ENOUGH, ("127.0.0.5", 0))
            with anything().wrap_socket(elsewhere) as connection:
                connection.sendall(b"GET /v1/ca HTTP/1.1\r\n\r\n")
                assert answer(connection).startswith(b"HTTP/1.0 200")
            for each in silent:
                answer(each)
            head.client().trust()
        finally:
            for each in silent:
                each.close()


def test_a_head_that_ends_lets_go_of_its_port(tmp_path: Path) -> None:
    with enrolling(tmp_path / "head") as head:
        port = head.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port), ENOUGH)
