"""EnrolServer: the open port of a head. Bounded in connections, bytes and time, whatever comes.

One request for each connection, each on a thread of its own.
"""

import io
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from expert_workers.machines.enrol_messages import MAX_BODY
from expert_workers.machines.enrol_service import Answer, Asked, EnrolService

logger = logging.getLogger(__name__)

# Seconds for a whole connection, from its first byte to its last.
CONNECTION_SECONDS = 20.0
MAX_CONNECTIONS, MAX_OF_A_PEER = 32, 8
_MAX_HEAD = 8 << 10
_BACKLOG = 64
_CHUNK = 64 << 10
# Seconds after which the next is accepted, when one could not be.
_PAUSE = 0.1
_BEARER = "Bearer "


class EnrolServer:
    """Listens from its making on; answers between `start` and `close`."""

    def __init__(self, address: str, port: int, seconds: float = CONNECTION_SECONDS) -> None:
        """Raises OSError where it cannot listen."""
        self._listener = socket.create_server((address, port), backlog=_BACKLOG)
        self._seconds = seconds
        self._lock = threading.Lock()
        self._peers: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def start(self, service: EnrolService, tls: ssl.SSLContext) -> None:
        self._thread = threading.Thread(target=self._accept, args=(service, tls), name="enrol", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Nothing more is accepted; what is being answered ends with its deadline, or with the process."""
        self._over.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread is not None:
            self._thread.join()

    def _accept(self, service: EnrolService, tls: ssl.SSLContext) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:
                # Closed; else one that was gone before it was accepted, or no descriptor is left for it.
                if self._over.wait(_PAUSE):
                    return
                continue
            peer = str(address[0])
            if not self._has_room(peer):
                connection.close()
                continue
            args = (connection, peer, service, tls)
            try:
                threading.Thread(target=self._serve, args=args, name="enrol-peer", daemon=True).start()
            except RuntimeError:
                self._ended(peer)
                connection.close()

    def _has_room(self, peer: str) -> bool:
        with self._lock:
            if self._peers.total() >= MAX_CONNECTIONS or self._peers[peer] >= MAX_OF_A_PEER:
                return False
            self._peers[peer] += 1
            return True

    def _ended(self, peer: str) -> None:
        with self._lock:
            self._peers[peer] -= 1
            # It would otherwise grow by every address there ever was.
            self._peers += Counter()

    def _serve(self, plain: socket.socket, peer: str, service: EnrolService, tls: ssl.SSLContext) -> None:
        deadline = time.monotonic() + self._seconds
        try:
            with plain:
                plain.settimeout(self._seconds)
                with tls.wrap_socket(plain, server_side=True) as connection:
                    _Handler(connection, peer, service, deadline)
        except (OSError, ValueError) as error:
            # Garbage, a peer that has left, or one that is too slow.
            logger.debug("enrolment of %s: %s", peer, error)
        finally:
            self._ended(peer)


class _Handler(BaseHTTPRequestHandler):
    """One request and its answer; all in its making, as its base class has it."""

    server_version, sys_version = "expertmesh", ""

    def __init__(self, connection: ssl.SSLSocket, peer: str, service: EnrolService, deadline: float) -> None:
        self._stream = _Bounded(connection, deadline, _MAX_HEAD + MAX_BODY)
        self._peer = peer
        self._service = service
        super().__init__(connection, (peer, 0), None)  # type: ignore[arg-type] # there is no server to it

    def setup(self) -> None:
        self.connection = self.request
        self.rfile = io.BufferedReader(self._stream, _CHUNK)
        self.wfile = self._stream  # type: ignore[assignment] # all that is asked of it is to write

    def finish(self) -> None:
        """Nothing is buffered."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its base class's name
        """What matters is told by the service."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > 9 or int(length) > MAX_BODY:
            self._send(Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"{}"))
            return
        body = self.rfile.read(int(length))
        if len(body) == int(length):
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        header = self.headers.get("Authorization", "")
        bearer = header.removeprefix(_BEARER) if header.startswith(_BEARER) else ""
        asked = Asked(self.command, self.path, bearer.strip(), body, self._peer)
        self._send(self._service.answer(asked))

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(answer.body)))
        if answer.retry_after:
            self.send_header("Retry-After", str(int(answer.retry_after) + 1))
        self.end_headers()
        self.wfile.write(answer.body)


class _Bounded(io.RawIOBase):
    """A connection of which so many bytes are read at most, and all until a deadline."""

    def __init__(self, connection: ssl.SSLSocket, deadline: float, most: int) -> None:
        self._connection = connection
        self._deadline = deadline
        self._left = most

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        self._connection.settimeout(self._remaining())
        count = self._connection.recv_into(view)
        self._left -= count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            self._connection.settimeout(self._remaining())
            self._connection.sendall(view[start : start + _CHUNK])
        return len(view)

    def _remaining(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("too slow")
        return left
