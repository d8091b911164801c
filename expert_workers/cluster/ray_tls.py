"""What speaks at the address of Ray's head, and whether both ends accept each other's certificates.

Found out with handshakes of our own: Ray itself tries for more than 40 seconds, and then says only that it
found no peer.
"""

import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import Any

from expert_workers.tls import TlsPaths, context, reason_of
from moe_model.errors import ClusterError

# What errors call the files.
RAY_TLS = "Ray TLS"
# The HTTP/2 client preface with an empty SETTINGS frame; a server's first frame is one too (RFC 9113, 3.4).
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4
_ALERT = 21
# Kept of the time for a second look, after the first had no answer.
_SECOND_LOOK = 1.0
_SETUP = "RAY_USE_TLS=1, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT"


def check_transport(where: str, host: str, port: int, tls: TlsPaths | None, deadline: float) -> None:
    """Raises ClusterError, `where` first, unless gRPC answers at the port over what `tls` says."""
    try:
        if tls is None:
            _check_plain(where, host, port, deadline)
        else:
            _check_tls(where, host, port, tls, deadline)
    except TimeoutError:
        raise ClusterError(
            f"{where} cannot be reached: timed out; it hangs, or a firewall is between"
        ) from None
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(f"{where} cannot be reached: {reason}") from None


def _check_plain(where: str, host: str, port: int, deadline: float) -> None:
    head: bytes | None = None
    with _connect(host, port, deadline) as connection, suppress(TimeoutError):
        head = _greeting(connection, deadline - _SECOND_LOOK)
    if head is not None and _is_http2(head):
        return
    # A server of TLS says nothing to this, leaves, or sends an alert.
    if (not head or head[0] == _ALERT) and _offers_tls(host, port, deadline):
        raise ClusterError(f"{where} wants TLS, and none is set up here: set {_SETUP}")
    if head is None:
        raise TimeoutError
    raise ClusterError(f"{where} cannot be used: something else listens there")


def _check_tls(where: str, host: str, port: int, paths: TlsPaths, deadline: float) -> None:
    client = context(paths, is_server=False, what=RAY_TLS)
    # Ray compares names and addresses too.
    client.check_hostname = True
    client.set_alpn_protocols(["h2"])
    with _connect(host, port, deadline) as plain:
        plain.settimeout(_remaining(deadline))
        try:
            with client.wrap_socket(plain, server_hostname=host) as connection:
                # A peer that refuses our certificate leaves only after this handshake.
                if _is_http2(_greeting(connection, deadline)):
                    return
        except ssl.SSLCertVerificationError as error:
            reason = reason_of(error) or f"is not of the CA {paths.ca} ({error.verify_message})"
            raise ClusterError(f"{where} cannot be trusted: its certificate {reason}") from None
        except (ssl.SSLError, ConnectionError) as error:
            if "ALERT" not in (getattr(error, "reason", None) or ""):
                raise _not_tls(where, host, port, deadline) from None
    raise ClusterError(
        f"{where} does not accept the certificate {paths.cert}: it knows another CA, or its clock is wrong"
    )


def _not_tls(where: str, host: str, port: int, deadline: float) -> ClusterError:
    with _connect(host, port, deadline) as connection, suppress(TimeoutError):
        if _is_http2(_greeting(connection, deadline)):
            return ClusterError(
                f"{where} speaks without TLS, and RAY_USE_TLS is set here: start it with {_SETUP}, "
                "or unset RAY_USE_TLS"
            )
    return ClusterError(f"{where} cannot be used: something else listens there")


def _offers_tls(host: str, port: int, deadline: float) -> bool:
    anything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anything.check_hostname = False
    anything.verify_mode = ssl.CERT_NONE
    with _connect(host, port, deadline) as plain:
        plain.settimeout(_remaining(deadline))
        try:
            with anything.wrap_socket(plain):
                return True
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")
        except (ConnectionError, TimeoutError):
            return False


def _greeting(connection: socket.socket, deadline: float) -> bytes:
    """The beginning of what the other end says to a client of HTTP/2; less where it leaves. TimeoutError."""
    head = b""
    with suppress(ConnectionError, ssl.SSLError):
        connection.settimeout(_remaining(deadline))
        connection.sendall(_HELLO)
        while len(head) < _FRAME_HEADER_BYTES:
            connection.settimeout(_remaining(deadline))
            part = connection.recv(_FRAME_HEADER_BYTES - len(head))
            if not part:
                break
            head += part
    return head


def _is_http2(head: bytes) -> bool:
    return len(head) == _FRAME_HEADER_BYTES and head[3] == _SETTINGS


def _connect(host: str, port: int, deadline: float) -> socket.socket:
    """To the first address that answers. Raises OSError."""
    error: OSError = TimeoutError()
    for family, address in _addresses(host, port, deadline):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(_remaining(deadline))
            connection.connect(address)
        except OSError as raised:
            connection.close()
            error = raised
        else:
            return connection
    raise error


def _addresses(host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
    """In a thread of its own, since a name server that is not there costs as long as the system likes."""
    found: list[tuple[int, Any]] = []
    failed: list[OSError] = []

    def look() -> None:
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, OverflowError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else OSError(str(error)))
        else:
            found.extend((family, address) for family, _, _, _, address in infos)

    thread = threading.Thread(target=look, name="ray-address", daemon=True)
    thread.start()
    thread.join(_remaining(deadline))
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError
    return found


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining
