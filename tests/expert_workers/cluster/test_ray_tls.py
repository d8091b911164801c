"""Who listens at Ray's address, found out with sockets that are no Ray at all."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from expert_workers.cluster.ray_tls import check_transport
from expert_workers.tls import TlsPaths, context
from moe_model.errors import ClusterError
from tests.coordinator.api.certificates import Authority, write_private

HOST = "127.0.0.1"
PATIENCE = 1.6
# Seconds that a busy machine may add.
BUSY = 3.0
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
Behaviour = Callable[[socket.socket], None]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def paths(tmp_path: Path, authority: Authority) -> TlsPaths:
    return write_paths(tmp_path / "ours", authority, authority.sign())


def write_paths(folder: Path, authority: Authority, signed: tuple[bytes, bytes]) -> TlsPaths:
    folder.mkdir()
    files = {"cert.pem": signed[0], "key.pem": signed[1], "ca.pem": authority.pem}
    return TlsPaths(*(str(write_private(folder / name, data)) for name, data in files.items()))


@contextmanager
def listening(behave: Behaviour) -> Iterator[int]:
    """A port where every connection is treated like this."""
    with socket.create_server((HOST, 0)) as listener:

        def run() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError, ssl.SSLError):
                        behave(connection)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def greet(connection: socket.socket) -> None:
    connection.sendall(SETTINGS)
    while connection.recv(1 << 10):
        pass


def http(connection: socket.socket) -> None:
    connection.recv(1 << 10)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def leave(connection: socket.socket) -> None:
    connection.recv(1)


def wait(connection: socket.socket) -> None:
    while connection.recv(1 << 10):
        pass


def over_tls(paths: TlsPaths, then: Behaviour) -> Behaviour:
    server = context(paths, is_server=True)

    def behave(connection: socket.socket) -> None:
        with server.wrap_socket(connection, server_side=True) as stream:
            then(stream)

    return behave


def look(port: int, tls: TlsPaths | None = None) -> None:
    started = time.monotonic()
    try:
        check_transport("Ray at X", HOST, port, tls, started + PATIENCE)
    finally:
        assert time.monotonic() - started < PATIENCE + BUSY


def test_what_speaks_http2_gets_through(paths: TlsPaths) -> None:
    with listening(greet) as port:
        look(port)
    with listening(over_tls(paths, greet)) as port:
        look(port, paths)


@pytest.mark.parametrize(
    ("behave", "message"),
    [
        (http, "cannot be used: something else listens there"),
        (leave, "cannot be used: something else listens there"),
        (wait, "cannot be reached: timed out"),
    ],
)
def test_what_does_not_is_no_ray(paths: TlsPaths, behave: Behaviour, message: str) -> None:
    for tls in (None, paths):
        with listening(behave) as port, pytest.raises(ClusterError, match=rf"^Ray at X {message}"):
            look(port, tls)


def test_tls_that_is_not_expected_and_plain_that_is_not(paths: TlsPaths) -> None:
    with listening(over_tls(paths, greet)) as port, pytest.raises(ClusterError, match="wants TLS, and none"):
        look(port)
    with listening(greet) as port, pytest.raises(ClusterError, match="speaks without TLS"):
        look(port, paths)


def test_a_peer_that_leaves_after_the_handshake_did_not_like_us(paths: TlsPaths) -> None:
    with (
        listening(over_tls(paths, leave)) as port,
        pytest.raises(ClusterError, match=rf"does not accept the certificate {paths.cert}"),
    ):
        look(port, paths)


def test_nobody_there(paths: TlsPaths) -> None:
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
    for tls in (None, paths):
        with pytest.raises(ClusterError, match=r"^Ray at X cannot be reached: Connection refused$"):
            look(port, tls)


def test_a_name_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def resolve(*_: object, **__: object) -> list[object]:
        done.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ClusterError, match="cannot be reached: timed out"):
        look(1)
    done.set()
