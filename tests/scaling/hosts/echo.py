"""The smallest service: what a host sends back, and how long that takes. As a program it is the server."""

import socket
import sys
import threading
import time
from types import TracebackType
from typing import Self

from scaling.hosts.namespaces import Host

PORT = 7


def main(address: str) -> None:
    with socket.create_server((address, PORT)) as server:
        print("READY", flush=True)
        while True:
            threading.Thread(target=_echo, args=(server.accept()[0],), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def serve_echo(host: Host) -> None:
    """Starts the server on a host, where it runs as long as the host is there."""
    process = host.popen(sys.executable, "-m", "tests.scaling.hosts.echo", host.address, stdout=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == b"READY\n"


class Echo:
    """A connection from the test to a host's echo server."""

    def __init__(self, host: Host, timeout: float = 5.0) -> None:
        self._socket = socket.create_connection((host.address, PORT), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def round_trip(self, timeout: float = 5.0, size: int = 1) -> float:
        """Seconds until `size` bytes are back. TimeoutError, ConnectionError.

        They are sent before any are read: the sockets' buffers must hold them.
        """
        started = time.monotonic()
        self._socket.settimeout(timeout)
        self._socket.sendall(bytes(size))
        num_back = 0
        while num_back < size:
            left = started + timeout - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("closed")
            num_back += len(data)
        return time.monotonic() - started

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


if __name__ == "__main__":
    main(sys.argv[1])
