"""What both ends of a stream do with a socket: options, reading frames, sending them. Knows no key.

A socket stays blocking for Python, which would otherwise poll before every call; the kernel ends a wait.
"""

import errno
import socket
import ssl
import struct
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from expert_workers.transports.frame import Buffer
from expert_workers.transports.stream.tls import Stream, TlsStream

# Seconds after which a blocking read or write comes back to look at its deadline.
TICK = 0.1
_TIMEVAL = struct.Struct("@ll")
_UNIX_BUFFER_BYTES = 4 << 20
_KEEPALIVE_SECONDS = 15
_CACHE_LINE = 64


def listen(host: str, ports: range) -> socket.socket:
    """On the first of the ports that is free; none: on any. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in ports:
        try:
            return socket.create_server((host, port), family=family)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    if ports:
        raise OSError(errno.EADDRINUSE, f"{host}: ports {ports[0]} to {ports[-1]} are all taken")
    return socket.create_server((host, 0), family=family)


def prepare(connection: socket.socket, tick: float = TICK) -> Stream:
    """For frames: no delay, no timeout but the kernel's, keepalive against a peer that has vanished."""
    if isinstance(connection, ssl.SSLSocket):
        _set_tcp_options(connection)
        return TlsStream(connection, tick)
    connection.settimeout(None)
    seconds = int(tick)
    timeval = _TIMEVAL.pack(seconds, int((tick - seconds) * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER_BYTES)
    else:
        _set_tcp_options(connection)
    return connection


def _set_tcp_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEPALIVE_SECONDS)


def aligned_buffer(size: int) -> memoryview:
    """Bytes that begin at a cache line, as products want their operands; not written before they are used."""
    raw = np.empty(size + _CACHE_LINE, np.uint8)
    start = -raw.ctypes.data % _CACHE_LINE
    return raw[start : start + size].data


def remainder(buffers: Sequence[Buffer], num_sent: int) -> list[memoryview]:
    """What is left of buffers after so many bytes."""
    left = []
    for buffer in buffers:
        view = memoryview(buffer)
        if view.nbytes <= num_sent:
            num_sent -= view.nbytes
            continue
        left.append(view.cast("B")[num_sent:])
        num_sent = 0
    return left


def end(connection: Stream) -> None:
    """Closes it, and wakes a thread that waits in it."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
