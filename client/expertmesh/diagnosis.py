"""What is wrong with an address where calls fail before any server of ours has answered them.

grpc's own words say how a connection failed. Here the address is asked what it is, for a moment: which port,
which file or which option is wrong, and what to do next.
"""

import queue
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import grpc

from expertmesh.address import host_port, is_local
from expertmesh.connection import Connection
from expertmesh.errors import ClientError

# All of it; a call may end so much later than its timeout.
SECONDS = 0.6
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4
_SERVICES = {
    "control": "/expertmesh.v1.ControlService/GetServerInfo",
    "grpc": "/expertmesh.v1.GenerationService/GetModelInfo",
}
_OTHER_HOST = (62, 64)
_READY = "the server's READY line says where it listens (grpc=HOST:PORT, control=HOST:PORT)"


def may_explain(failed: ClientError) -> bool:
    """Not what a server of ours has said, with its reason."""
    return not failed.reason and failed.code in ("UNAVAILABLE", "UNIMPLEMENTED")


def explained(failed: ClientError, address: str, connection: Connection) -> ClientError:
    """The same error in better words, where there are some; within SECONDS."""
    if not may_explain(failed):
        return failed
    words = within(SECONDS, lambda: _words(failed, address, connection))
    return failed if words is None else ClientError(failed.code, words)


def why_not_ready(address: str, connection: Connection) -> str | None:
    """What is wrong with an address that cannot be connected to; within SECONDS."""
    return within(SECONDS, lambda: _of_connection(address, connection))


def within(seconds: float, look: Callable[[], str | None]) -> str | None:
    """On a thread, for looking up a name knows no timeout. A look that fails says nothing."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def answer() -> None:
        try:
            found.put(look())
        except Exception:  # noqa: BLE001 - the error that was to be explained is told as it is
            found.put(None)

    threading.Thread(target=answer, name="client-diagnosis", daemon=True).start()
    try:
        return found.get(timeout=seconds)
    except queue.Empty:
        return None


def _words(failed: ClientError, address: str, connection: Connection) -> str | None:
    if failed.code == "UNIMPLEMENTED":
        return _of_service(address, connection)
    return _of_connection(address, connection)


def _of_service(address: str, connection: Connection) -> str | None:
    """A gRPC server that does not know the method."""
    known = []
    with connection.open(address) as channel:
        for name, method in _SERVICES.items():
            try:
                call: Any = channel.unary_unary(method)
                call(b"", timeout=SECONDS / 2, metadata=connection.metadata)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    continue
            known.append(name)
    match known:
        case ["control"]:
            return f"{address} is the server's control port, and this needs its gRPC port: {_READY}"
        case ["grpc"]:
            return f"{address} is the server's gRPC port, and this needs its control port: {_READY}"
        case []:
            return f"{address} is a gRPC port of something else, not of `expertmesh serve`"
    return None


def _of_connection(address: str, connection: Connection) -> str | None:
    found = host_port(address)
    if found is None:
        return None
    if not is_local(address) and _proxy(found[0]):
        return (
            f"{address} cannot be reached through the proxy {_proxy(found[0])} of the environment "
            f"(grpc_proxy, https_proxy, http_proxy); no_proxy={found[0]} goes around it"
        )
    return _Probe(address, found, connection).look()


def _proxy(host: str) -> str:
    """The one that grpc takes for a host, in its order."""
    proxies = urllib.request.getproxies_environment()
    if urllib.request.proxy_bypass(host):
        return ""
    return next((proxies[name] for name in ("grpc", "https", "http") if proxies.get(name)), "")


class _Probe:
    """Connections to one address, to see what listens there."""

    def __init__(self, address: str, where: tuple[str, int], connection: Connection) -> None:
        self._address = address
        self._where = where
        self._connection = connection
        self._deadline = time.monotonic() + SECONDS

    def look(self) -> str | None:
        try:
            return self._encrypted() if self._connection.is_encrypted else self._plain()
        except (socket.gaierror, UnicodeError):
            # The second: no name of a host can look like this.
            return f"{self._address}: unknown host"
        except ConnectionRefusedError:
            return f"nothing listens at {self._address}: is the server running, and is this its port?"
        except OSError as error:
            return f"{self._address} cannot be reached: {error.strerror or error}"

    def _plain(self) -> str | None:
        answer = self._answer_to_plain()
        if answer.startswith(b"HTTP/"):
            return f"{self._address} is an HTTP port, and this needs a gRPC port: {_READY}"
        if answer[3:4] == bytes([_SETTINGS]):
            return None
        if self._speaks_tls():
            return f"{self._address} speaks TLS: give its CA (--tls-ca FILE), or --tls for the system's"
        return f"{self._address} does not speak gRPC: {_READY}"

    def _encrypted(self) -> str | None:
        context, shaken = self._connection.tls_context(), False
        try:
            with self._open() as raw, context.wrap_socket(raw, server_hostname=self._where[0]) as found:
                if found.selected_alpn_protocol() != "h2":
                    return f"{self._address} is an HTTPS port, and this needs a gRPC port: {_READY}"
                # Only what comes after the handshake says whether our certificate was taken.
                shaken = True
                found.sendall(_PREFACE)
                return None if found.recv(64) else self._of_own_certificate()
        except ssl.SSLCertVerificationError as error:
            return self._of_certificate(error)
        except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
            return self._of_own_certificate() if shaken else self._of_handshake()

    def _of_certificate(self, error: ssl.SSLCertVerificationError) -> str:
        if error.verify_code in _OTHER_HOST:
            return (
                f"the certificate of {self._address} is not one for {self._where[0]}: use a name that it has"
            )
        # 10: expired, and others that are the certificate's own fault.
        if error.verify_code in (9, 10):
            return f"the certificate of {self._address} cannot be used: {error.verify_message}"
        ca = "any CA of this system" if self._connection.ca is None else f"the CA of {self._connection.ca}"
        return f"the certificate of {self._address} is not signed by {ca}: give the right one (--tls-ca FILE)"

    def _of_own_certificate(self) -> str:
        """The other side has shown its own, and hung up when it had seen ours."""
        if self._connection.certificate is None:
            return f"{self._address} wants a client's certificate: give --tls-cert FILE and --tls-key FILE"
        return f"{self._address} does not accept the certificate of {self._connection.certificate}"

    def _of_handshake(self) -> str | None:
        answer = self._answer_to_plain()
        if answer.startswith(b"HTTP/"):
            return f"{self._address} is an HTTP port without TLS, and this needs a gRPC port: {_READY}"
        if answer[3:4] == bytes([_SETTINGS]):
            return f"{self._address} does not speak TLS: leave out --tls and --tls-ca"
        return None

    def _answer_to_plain(self) -> bytes:
        """The first bytes that come for what a plain gRPC client says; none where the other side hangs up."""
        with self._open() as found:
            try:
                found.sendall(_PREFACE)
                return found.recv(64)
            except (ConnectionResetError, BrokenPipeError):
                return b""

    def _speaks_tls(self) -> bool:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with self._open() as raw, context.wrap_socket(raw, server_hostname=self._where[0]):
                return True
        except ssl.SSLError as error:
            # Without a certificate of ours the other side ends the handshake with an alert, which is TLS.
            return "ALERT" in (error.reason or "")
        except OSError:
            return False

    def _open(self) -> socket.socket:
        left = max(0.01, self._deadline - time.monotonic())
        found = socket.create_connection(self._where, timeout=left)
        found.settimeout(max(0.01, self._deadline - time.monotonic()))
        return found
