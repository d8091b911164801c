"""EnrolClient: a joiner's questions to its head, which has to be the one that the join token names.

First the CA's certificate is fetched from whatever answers, without a secret, and compared with the token's
hash; all else goes over TLS that this CA vouches for. Each question is asked on a thread of its own, so that
a signal need not wait for a name server or a network.
"""

import http.client
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from http import HTTPStatus
from typing import TypeVar

from expert_workers.machines import certificates
from expert_workers.machines.enrol_messages import (
    BYTES_PATH,
    CA_PATH,
    CHECK_PATH,
    ENROL_PATH,
    MAX_BODY,
    REACH_PATH,
    Checked,
    Enrolled,
    EnrolRequest,
    MessageError,
    ReachReply,
    ReachRequest,
    encode,
    refusal,
)
from expert_workers.machines.join_token import JoinToken
from expert_workers.tls import reason_of
from moe_model.errors import ClusterError, ConfigError
from moe_model.halt import Halt

T = TypeVar("T")
# Seconds for one question, the head's connections back included.
PATIENCE = 8.0
# Seconds that a link is measured for.
LINK_SECONDS = 1.0
_CHUNK = 64 << 10


class EnrolClient:
    """Of the head at HOST:PORT. Its methods raise ClusterError, which says what to do, and HaltedError."""

    def __init__(
        self,
        host: str,
        port: int,
        token: JoinToken,
        source: str | None,
        halt: Halt,
        patience: float = PATIENCE,
    ) -> None:
        """`source`: the address of ours to come from, None for the system's choice."""
        self.where = f"the head at {host}:{port}"
        self._host, self._port = host, port
        self._token = token
        self._source = source
        self._halt = halt
        self._patience = patience
        self._tls: ssl.SSLContext | None = None
        # A head whose certificate is of the user's making shows it for its address.
        self._name = host if token.brings else certificates.HEAD_NAME

    def trust(self) -> tuple[bytes, str]:
        """The CA, in PEM, and our own address on the way there."""
        anything = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anything.check_hostname, anything.verify_mode = False, ssl.CERT_NONE
        status, ca, address = self._ask(anything, "GET", CA_PATH, b"", secret="")
        try:
            # What is hashed is all that is trusted: the answer comes from whatever listens there.
            is_it = status == HTTPStatus.OK and certificates.fingerprint(ca) == self._token.ca
            ca = certificates.without_more(ca)
        except ConfigError:
            raise ClusterError(f"{self.where} is none: something else listens there") from None
        if not is_it:
            raise ClusterError(
                f"{self.where} has another CA than the join token names: copy join.token of this head again, "
                "or another machine answers there"
            )
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        self._tls.load_verify_locations(cadata=ca.decode("ascii", "replace"))
        return ca, address

    def check(self, request: EnrolRequest) -> Checked:
        """Asks whether this machine may join, and changes nothing."""
        return self._told(CHECK_PATH, encode(request), Checked.parse)

    def enrol(self, request: EnrolRequest) -> Enrolled:
        return self._told(ENROL_PATH, encode(request), Enrolled.parse)

    def unreachable(self, request: ReachRequest) -> dict[int, str]:
        """Which of our ports the head cannot connect to, and why."""
        found = self._told(REACH_PATH, encode(request), ReachReply.parse).unreachable
        return {int(port): why for port, why in found.items() if port.isdecimal()}

    def bytes_per_second(self) -> float:
        """Of the link from the head to here, measured for a second at most."""
        return self._apart(self._measure)

    def _told(self, path: str, body: bytes, parse: Callable[[bytes], T]) -> T:
        assert self._tls is not None, "nothing is said before there is trust"
        status, data, _ = self._ask(self._tls, "POST", path, body, self._token.secret)
        if status == HTTPStatus.OK:
            try:
                return parse(data)
            except MessageError as error:
                raise ClusterError(f"{self.where} says what is not understood: {error}") from None
        why = refusal(data) or f"HTTP {status}"
        raise ClusterError(f"{self.where} refuses: {why}")

    def _ask(
        self, tls: ssl.SSLContext, method: str, path: str, body: bytes, secret: str
    ) -> tuple[int, bytes, str]:
        """Status, body, and our own address."""

        def ask() -> tuple[int, bytes, str]:
            connection = self._connect(tls)
            try:
                own = str(connection.sock.getsockname()[0])
                response = self._begun(connection, method, path, body, secret)
                return response.status, response.read(MAX_BODY), own
            finally:
                connection.close()

        return self._apart(ask)

    def _measure(self) -> float:
        assert self._tls is not None, "nothing is said before there is trust"
        connection = self._connect(self._tls)
        try:
            response = self._begun(connection, "GET", BYTES_PATH, b"", self._token.secret)
            if response.status != HTTPStatus.OK:
                raise ClusterError(f"{self.where} refuses to send bytes: HTTP {response.status}")
            started, count = time.monotonic(), 0
            while (data := response.read1(_CHUNK)) and time.monotonic() - started < LINK_SECONDS:
                count += len(data)
            return count / max(1e-6, time.monotonic() - started)
        finally:
            connection.close()

    def _connect(self, tls: ssl.SSLContext) -> http.client.HTTPConnection:
        source = None if self._source is None else (self._source, 0)
        connection = http.client.HTTPConnection(self._host, self._port, self._patience, source)
        connection.connect()
        try:
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=self._name)
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _begun(
        connection: http.client.HTTPConnection, method: str, path: str, body: bytes, secret: str
    ) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        connection.request(method, path, body or None, headers)
        return connection.getresponse()

    def _apart(self, work: Callable[[], T]) -> T:
        """On a daemon's thread, which is left behind when it takes too long."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised again by who waits
                future.set_exception(error)

        threading.Thread(target=run, name="enrol-client", daemon=True).start()
        try:
            return self._halt.result(future, self._patience)
        except ssl.SSLCertVerificationError as error:
            why = reason_of(error) or f"is not of the CA that the join token names ({error.verify_message})"
            raise ClusterError(f"{self.where} cannot be trusted: its certificate {why}") from None
        except (ssl.SSLError, http.client.HTTPException):
            raise ClusterError(f"{self.where} is none: something else listens there") from None
        except TimeoutError:
            raise ClusterError(
                f"{self.where} cannot be reached: timed out; it hangs, or a firewall is between"
            ) from None
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ClusterError(
                f"{self.where} cannot be reached: {reason}; start `expertmesh head` there, and look at the "
                "address and at firewalls"
            ) from None
