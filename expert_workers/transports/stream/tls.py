"""TLS around a stream, on request: both ends show a certificate of one CA, and then prove the session key.

Names in certificates are not compared with addresses: workers are wherever Ray puts them, and which process
it is that answers is what the session key proves.
"""

import select
import socket
import ssl
from collections.abc import Sequence

from expert_workers.transports.frame import Buffer

_RECORD_BYTES = 1 << 14


class TlsStream:
    """What frames need of a socket, over an SSLSocket that has been through its handshakes.

    Flags are the kernel's; MSG_DONTWAIT is the one that is used.
    """

    def __init__(self, inner: ssl.SSLSocket, tick: float) -> None:
        inner.settimeout(0)
        self._inner = inner
        self._tick_ms = 1e3 * tick

    def fileno(self) -> int:
        return self._inner.fileno()

    def pending(self) -> int:
        """Bytes that a poll of the socket does not show."""
        return self._inner.pending()

    def recv_into(self, buffer: memoryview, nbytes: int = 0, flags: int = 0, /) -> int:
        try:
            return self._inner.recv_into(buffer, nbytes)
        except ssl.SSLWantReadError:
            self._wait(select.POLLIN, flags)
        try:
            return self._inner.recv_into(buffer, nbytes)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def sendmsg(self, buffers: Sequence[Buffer], ancdata: tuple[()] = (), flags: int = 0, /) -> int:
        """One record at a time: what is tried again after a full socket must begin with the same bytes."""
        record = _joined(buffers)
        try:
            return self._inner.send(record)
        except ssl.SSLWantWriteError:
            self._wait(select.POLLOUT, flags)
        try:
            return self._inner.send(record)
        except ssl.SSLWantWriteError:
            raise BlockingIOError from None

    def shutdown(self, how: int, /) -> None:
        self._inner.shutdown(how)

    def close(self) -> None:
        self._inner.close()

    def _wait(self, event: int, flags: int) -> None:
        if flags & socket.MSG_DONTWAIT:
            raise BlockingIOError
        poll = select.poll()
        poll.register(self._inner, event)
        if not poll.poll(self._tick_ms):
            raise BlockingIOError


Stream = socket.socket | TlsStream


def _joined(buffers: Sequence[Buffer]) -> bytes:
    record = b""
    for buffer in buffers:
        record += memoryview(buffer).cast("B")[: _RECORD_BYTES - len(record)]
        if len(record) == _RECORD_BYTES:
            break
    return record
