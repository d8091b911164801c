"""How a client gets to a worker's stream: the nearest way, then the handshake."""

import socket
import ssl
import time
from contextlib import suppress

from expert_workers.transports.base import Failure, FailureReason, WorkerFailureError
from expert_workers.transports.stream.auth import Endpoint, boot_id, prove_to_server
from expert_workers.transports.stream.connection import StreamConnection
from expert_workers.transports.stream.socket import prepare
from expert_workers.transports.stream.tls import Stream
from moe_model.errors import ReplyError


def connect(endpoint: Endpoint, tls: ssl.SSLContext | None, use_unix: bool, deadline: float) -> Stream:
    """A stream that is ready for frames. Raises ReplyError, OSError."""
    stream = _open(endpoint, tls, use_unix, deadline)
    try:
        prove_to_server(stream, endpoint.key, deadline)
        return prepare(stream)
    except BaseException:
        stream.close()
        raise


def _open(endpoint: Endpoint, tls: ssl.SSLContext | None, use_unix: bool, deadline: float) -> socket.socket:
    if use_unix and endpoint.boot_id == boot_id():
        # The same machine may still be another network namespace, where nothing listens under this name.
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with suppress(OSError):
            stream.settimeout(max(0.001, deadline - time.monotonic()))
            stream.connect(endpoint.unix_name)
            return stream
        stream.close()
    if endpoint.is_tls and tls is None:
        raise ReplyError("wants TLS on its stream, and none is set up here")
    if tls is not None and not endpoint.is_tls:
        raise ReplyError("does not offer TLS on its stream")
    timeout = max(0.001, deadline - time.monotonic())
    stream = socket.create_connection((endpoint.host, endpoint.port), timeout)
    if tls is None:
        return stream
    try:
        return tls.wrap_socket(stream)
    except BaseException:
        stream.close()
        raise


def open_link(
    rank: int, endpoint: Endpoint, tls: ssl.SSLContext | None, use_unix: bool, timeout: float
) -> StreamConnection:
    """Blocks for at most `timeout` seconds. Raises WorkerFailureError."""
    try:
        stream = connect(endpoint, tls, use_unix, time.monotonic() + timeout)
    except ReplyError as error:
        raise _failure(rank, str(error)) from None
    except OSError as error:
        raise _failure(rank, f"its stream cannot be reached: {error.strerror or error}") from None
    return StreamConnection(rank, stream, endpoint.pid)


def _failure(rank: int, message: str) -> WorkerFailureError:
    return WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: {message}"))
