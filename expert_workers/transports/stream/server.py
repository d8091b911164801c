"""StreamServer: the data plane's listening side, in a worker's process. Knows no Ray and no expert.

One thread takes connections, on TCP and on an abstract Unix socket, and each connection has a thread of its
own: it reads a call, computes and answers, one after the other.
"""

import logging
import os
import secrets
import select
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from expert_workers.transports.base import Answerer
from expert_workers.transports.frame import (
    ERROR,
    HEADER,
    PING,
    Frame,
    Header,
    error_frame,
    parse_call,
    pong_frame,
    read_header,
    reply_frame,
)
from expert_workers.transports.stream.auth import KEY_BYTES, Endpoint, boot_id, prove_to_client, refuse_busy
from expert_workers.transports.stream.serve_loop import ServeLoop
from expert_workers.transports.stream.socket import aligned_buffer, end, listen, prepare, remainder
from expert_workers.transports.stream.tls import Stream, TlsStream
from moe_model.errors import ExpertMeshError, ReplyError

_log = logging.getLogger(__name__)

_FIRST_BUFFER_BYTES = 1 << 18
_TICK = 1.0
_ACCEPT_PAUSE = 0.1


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds, and numbers of connections. A peer that moves no byte for `stall_timeout` in mid-frame is cut
    off."""

    handshake_timeout: float = 5.0
    stall_timeout: float = 60.0
    max_handshakes: int = 16
    max_connections: int = 256


class StreamServer:
    """A Served. Answers calls from the moment it is made until `close`."""

    def __init__(
        self,
        worker: Answerer,
        host: str,
        tls: ssl.SSLContext | None = None,
        limits: StreamLimits | None = None,
        prepare_thread: Callable[[], None] | None = None,
        loop: ServeLoop | None = None,
        ports: range = range(0),
    ) -> None:
        """Listens at once, on the first free one of the ports, none: on any; `prepare_thread` is run in each
        thread that will compute; `loop` answers what it can in the worker's place. Raises OSError."""
        self._worker = worker
        self._loop = loop
        self._tls = tls
        self._limits = limits or StreamLimits()
        self._prepare_thread = prepare_thread
        self._lock = threading.Lock()
        self._connections: dict[threading.Thread, Stream] = {}
        self._num_handshakes = 0
        self._is_open = True
        self._key = secrets.token_bytes(KEY_BYTES)
        self._unix_name = f"\0expertmesh-{secrets.token_hex(16)}"
        self._tcp = listen(host, ports)
        self._unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._unix.bind(self._unix_name)
        self._unix.listen()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._accept_all, name="stream-accept", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> Endpoint:
        host, port = self._tcp.getsockname()[:2]
        return Endpoint(os.getpid(), boot_id(), self._unix_name, host, port, self._tls is not None, self._key)

    @property
    def num_links(self) -> int:
        """As Served: connections, those that are not through their handshake too."""
        return len(self._connections)

    def close(self) -> None:
        """Ends all connections and waits for their threads. Idempotent."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            threads = list(self._connections)
            for connection in self._connections.values():
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._wake.close()
        self._thread.join()
        for thread in threads:
            thread.join()

    def _accept_all(self) -> None:
        with selectors.DefaultSelector() as selector, self._tcp, self._unix, self._woken:
            for listener in (self._tcp, self._unix):
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while self._is_open:
                for key, _ in selector.select():
                    if key.fileobj is not self._woken:
                        self._accept(self._tcp if key.fileobj is self._tcp else self._unix)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:
            _log.warning("a connection could not be taken: %s", error)
            # It still waits, and so must we: until a descriptor is free, or all is closed.
            select.select([self._woken], [], [], _ACCEPT_PAUSE)
            return
        thread = threading.Thread(target=self._serve, args=(connection,), name="stream", daemon=True)
        with self._lock:
            limits = self._limits
            is_full = (
                self._num_handshakes >= limits.max_handshakes
                or len(self._connections) >= limits.max_connections
            )
            if self._is_open and not is_full and self._started(thread, connection):
                return
        with suppress(OSError):
            refuse_busy(connection)
        connection.close()

    def _started(self, thread: threading.Thread, connection: socket.socket) -> bool:
        """With the lock held. False where the system has no thread to give."""
        self._num_handshakes += 1
        self._connections[thread] = connection
        try:
            thread.start()
        except RuntimeError as error:
            _log.warning("a connection could not be served: %s", error)
            self._num_handshakes -= 1
            del self._connections[thread]
            return False
        return True

    def _serve(self, connection: socket.socket) -> None:
        """A thread's top: whatever goes wrong ends this connection and no other."""
        me = threading.current_thread()
        try:
            try:
                stream = self._authenticated(connection)
            finally:
                with self._lock:
                    self._num_handshakes -= 1
            if self._prepare_thread is not None:
                self._prepare_thread()
            _Conversation(stream, self._worker, self._loop, self._limits.stall_timeout).run()
        except (ReplyError, OSError) as error:
            if self._is_open:
                _log.info("data plane: a peer %s", error)
        except Exception:  # noqa: BLE001 - a thread's top
            _log.exception("data plane: a connection ended")
        finally:
            with self._lock:
                end(self._connections.pop(me))

    def _authenticated(self, connection: socket.socket) -> Stream:
        deadline = time.monotonic() + self._limits.handshake_timeout
        if self._tls is not None and connection.family != socket.AF_UNIX:
            # Wrapping takes the socket over from `connection`.
            connection.settimeout(self._limits.handshake_timeout)
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._put(connection)
            connection.do_handshake()
        prove_to_client(connection, self._key, deadline)
        stream = prepare(connection, _TICK)
        self._put(stream)
        return stream

    def _put(self, stream: Stream) -> None:
        """What this thread's connection is now; closed at once if all are."""
        with self._lock:
            self._connections[threading.current_thread()] = stream
            if not self._is_open:
                raise ConnectionAbortedError("came when all was closed")


class _Conversation:
    """Calls in, answers out, over one connection."""

    def __init__(
        self, stream: Stream, worker: Answerer, loop: ServeLoop | None, stall_timeout: float
    ) -> None:
        self._stream = stream
        self._worker = worker
        # What TLS has deciphered is not in the socket.
        self._loop = None if isinstance(stream, TlsStream) else loop
        self._stall_timeout = stall_timeout
        self._buffer = aligned_buffer(_FIRST_BUFFER_BYTES)
        self._start = self._end = 0

    def run(self) -> None:
        """Until the peer closes. Raises ReplyError for what is no frame, OSError."""
        while self._run_loop() and (header := self._read_header()) is not None:
            body = self._read_body(header)
            self._send(self._answer(header, body))

    def _run_loop(self) -> bool:
        """Whatever can be answered without Python; False when the peer has closed."""
        if self._loop is None:
            return True
        is_open, self._start, self._end = self._loop.run(
            self._stream.fileno(),
            self._buffer,
            self._start,
            self._end,
            tick=_TICK,
            stall_timeout=self._stall_timeout,
        )
        return is_open

    def _answer(self, header: Header, body: memoryview) -> Frame:
        if header.kind == PING:
            return pong_frame(header)
        try:
            return reply_frame(self._worker.compute(parse_call(header, body)))
        except (ExpertMeshError, RuntimeError, MemoryError) as error:
            message = str(error).strip().splitlines() or [type(error).__name__]
            return error_frame(header.call_id, message[0])

    def _read_header(self) -> Header | None:
        """Waits for the next frame as long as it takes; None when the peer has closed between two."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start % 4 or len(self._buffer) - self._start < HEADER.size:
            self._make_room(HEADER.size)
        while self._end - self._start < HEADER.size:
            if not self._fill(may_wait=self._start == self._end):
                return None
        header = read_header(self._buffer, self._start)
        self._start += HEADER.size
        if header.kind == ERROR:
            raise ReplyError("sent an error where a call was expected")
        return header

    def _read_body(self, header: Header) -> memoryview:
        """A view of the buffer, until the next frame is read."""
        size = header.body_bytes
        if self._start + size > len(self._buffer):
            self._make_room(size)
        while self._end - self._start < size:
            self._fill(may_wait=False)
        start, self._start = self._start, self._start + size
        return self._buffer[start : start + size]

    def _make_room(self, size: int) -> None:
        """Moves what is unread to the beginning of a buffer that holds `size` bytes."""
        unread = self._buffer[self._start : self._end]
        if size > len(self._buffer):
            self._buffer = aligned_buffer(size + _FIRST_BUFFER_BYTES)
        self._buffer[: len(unread)] = unread
        self._start, self._end = 0, len(unread)

    def _fill(self, may_wait: bool) -> bool:
        """One read; False at the end of the stream between two frames."""
        stalled = 0.0
        while True:
            try:
                num_read = self._stream.recv_into(self._buffer[self._end :])
            except (BlockingIOError, TimeoutError):
                stalled += 0.0 if may_wait else _TICK
                if stalled >= self._stall_timeout:
                    raise TimeoutError("stopped in the middle of a frame") from None
                continue
            if num_read == 0 and not (may_wait and self._start == self._end):
                raise ConnectionResetError("closed in the middle of a frame")
            self._end += num_read
            return num_read > 0

    def _send(self, frame: Frame) -> None:
        buffers, total = frame
        stalled = 0.0
        while total:
            try:
                num_sent = self._stream.sendmsg(buffers)
            except (BlockingIOError, TimeoutError):
                stalled += _TICK
                if stalled >= self._stall_timeout:
                    raise TimeoutError("does not read its answers") from None
                continue
            total -= num_sent
            if total:
                stalled, buffers = 0.0, remainder(buffers, num_sent)
