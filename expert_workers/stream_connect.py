"""How a coordinator gets to a worker's stream: the nearest way, the handshake, in a thread of its own.

So that a worker that cannot be reached costs nobody time but this thread.
"""

import socket
import ssl
import threading
import time
from contextlib import suppress

from expert_workers.stream_auth import Endpoint, boot_id, prove_to_server
from expert_workers.stream_connection import StreamConnection
from expert_workers.stream_socket import end, prepare
from expert_workers.stream_tls import Stream
from expert_workers.transport import Failure, FailureReason
from moe_model.errors import ReplyError

CONNECT_TIMEOUT = 5.0


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
        # The same machine may still be another network namespace, where nobody listens under this name.
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


class Connector:
    """One attempt to reach a worker."""

    def __init__(self, rank: int, endpoint: Endpoint, tls: ssl.SSLContext | None, use_unix: bool) -> None:
        self._rank = rank
        self._endpoint = endpoint
        self._tls = tls
        self._use_unix = use_unix
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._error = ""
        self._is_cancelled = False
        self._thread = threading.Thread(target=self._run, name="stream-connect", daemon=True)
        self._thread.start()

    def wait(self, deadline: float) -> StreamConnection | Failure | None:
        """What came of it; None: nothing yet. The connection is given once."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            return None
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            return StreamConnection(self._rank, stream, self._endpoint.pid)
        return Failure(FailureReason.DIED, f"worker {self._rank}: {self._error}")

    def cancel(self) -> None:
        """Gives up; the thread ends by itself, at the latest at its deadline."""
        with self._lock:
            self._is_cancelled = True
            stream, self._stream = self._stream, None
        if stream is not None:
            end(stream)

    def _run(self) -> None:
        deadline = time.monotonic() + CONNECT_TIMEOUT
        try:
            stream = connect(self._endpoint, self._tls, self._use_unix, deadline)
        except ReplyError as error:
            self._error = str(error)
        except OSError as error:
            self._error = f"its stream cannot be reached: {error.strerror or error}"
        else:
            with self._lock:
                if not self._is_cancelled:
                    self._stream = stream
                    return
            end(stream)
