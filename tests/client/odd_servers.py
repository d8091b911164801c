"""Servers that do not do what a gRPC server does, on raw sockets: by name, what they do to a connection."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
SETTINGS_ACK = b"\0\0\0\4\1\0\0\0\0"
GOAWAY = b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\0" + b"\0\0\0\0"
# :status 200 and content-type: application/grpc, for stream 1, as HPACK literals.
_FIELDS = b"\x88\x0f\x10\x10application/grpc"
HEADERS = len(_FIELDS).to_bytes(3, "big") + b"\1\4\0\0\0\1" + _FIELDS
# One empty message of stream 1.
MESSAGE = b"\0\0\5\0\0\0\0\0\1" + b"\0\0\0\0\0"

Behaviour = Callable[[socket.socket, threading.Event], None]


def _silent(connection: socket.socket, over: threading.Event) -> None:
    over.wait()


def _hangs_up(connection: socket.socket, over: threading.Event) -> None:
    """The socket is closed at once."""


def _talks_nonsense(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(b"220 mail.example ESMTP\r\n" * 10)
    over.wait()


def _never_answers(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS + SETTINGS_ACK)
    over.wait()


def _goes_away(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS + SETTINGS_ACK + GOAWAY)
    over.wait()


def _half_closes(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS + SETTINGS_ACK)
    connection.shutdown(socket.SHUT_WR)
    over.wait()


def _begins_only(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS + SETTINGS_ACK)
    _read_call(connection)
    connection.sendall(HEADERS)
    over.wait()


def _begins_and_half_closes(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS + SETTINGS_ACK)
    _read_call(connection)
    connection.sendall(HEADERS)
    connection.shutdown(socket.SHUT_WR)
    over.wait()


def _drips(connection: socket.socket, over: threading.Event) -> None:
    connection.sendall(SETTINGS + SETTINGS_ACK)
    _read_call(connection)
    connection.sendall(HEADERS)
    while not over.wait(0.05):
        connection.sendall(MESSAGE)


def _read_call(connection: socket.socket) -> None:
    """Until the headers of stream 1 have come."""
    data = b""
    while b"\1\4\0\0\0\1" not in data and b"\1\5\0\0\0\1" not in data:
        part = connection.recv(4096)
        if not part:
            raise ConnectionError
        data += part


BEHAVIOURS: dict[str, Behaviour] = {
    "silent": _silent,
    "hangs up": _hangs_up,
    "nonsense": _talks_nonsense,
    "never answers": _never_answers,
    "goes away": _goes_away,
    "half-closes": _half_closes,
    "begins only": _begins_only,
    "begins and half-closes": _begins_and_half_closes,
    "drips": _drips,
}


@contextmanager
def odd_server(behaviour: str) -> Iterator[str]:
    """Its HOST:PORT."""
    over = threading.Event()
    threads: list[threading.Thread] = []
    connections: list[socket.socket] = []

    def handle(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            BEHAVIOURS[behaviour](connection, over)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connections.append(connection)
                threads.append(threading.Thread(target=handle, args=(connection,), daemon=True))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            # A client that connects again while it is closed may leave one open for a while.
            for connection in connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
