"""Channel: one end of a connection between an engine and a front. Knows messages, not what they mean."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable

from coordinator.engine.messages.errors import MessageError
from coordinator.engine.process.frames import FrameReader

logger = logging.getLogger(__name__)

_READ_BYTES = 64 << 10


class Channel:
    """Owns a connected socket. `send` may be called on any thread and never waits; all else happens on the
    loop on which it was opened."""

    def __init__(
        self,
        sock: socket.socket,
        receive: Callable[[object], None],
        ended: Callable[[str], None],
        drained: Callable[[], None] = lambda: None,
    ) -> None:
        """`receive` gets each message, `ended` why there are no more, once; `drained` is called when all that
        could not be sent at once has been sent."""
        sock.setblocking(False)
        self._sock = sock
        self._receive, self._ended, self._drained = receive, ended, drained
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._lock = threading.Lock()
        # What the socket has not taken yet.
        self._unsent: deque[memoryview] = deque()
        self._num_unsent = 0
        self._closed = False
        self._loop.add_reader(sock, self._read)

    @property
    def num_unsent(self) -> int:
        """Bytes that wait for the other side to read."""
        return self._num_unsent

    def send(self, frame: bytes) -> None:
        """Sends what can be sent at once and keeps the rest. After the end nothing happens."""
        with self._lock:
            if self._closed:
                return
            rest = memoryview(frame)
            if not self._unsent:
                rest = rest[self._write(rest) :]
                if not rest:
                    return
                # A loop that has ended without closing us sends nothing any more.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._await_room)
            self._unsent.append(rest)
            self._num_unsent += len(rest)

    def close(self) -> None:
        """What has not been sent is lost. `ended` is not called any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._unsent.clear()
            self._num_unsent = 0
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()

    def end(self, why: str) -> None:
        """Closes, and says so."""
        if not self._closed:
            self.close()
            self._ended(why)

    def _write(self, data: memoryview) -> int:
        """How many bytes the socket took. That the other side is gone is heard by reading."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return len(data)

    def _await_room(self) -> None:
        if not self._closed:
            self._loop.add_writer(self._sock, self._send_unsent)

    def _send_unsent(self) -> None:
        with self._lock:
            while self._unsent:
                first = self._unsent[0]
                num_sent = self._write(first)
                self._num_unsent -= num_sent
                if num_sent < len(first):
                    self._unsent[0] = first[num_sent:]
                    return
                self._unsent.popleft()
            self._loop.remove_writer(self._sock)
        self._drained()

    def _read(self) -> None:
        try:
            num_bytes = self._sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.end(f"the connection failed: {error}")
            return
        if not num_bytes:
            self.end("the other side has gone")
            return
        try:
            for message in self._reader.feed(self._buffer[:num_bytes]):
                self._receive(message)
                if self._closed:
                    return
        except MessageError as error:
            self.end(str(error))
        except Exception:
            # The rest of what was read is lost, and with it where the next message begins.
            logger.exception("a message could not be taken")
            self.end("a message could not be taken; the log says why")
