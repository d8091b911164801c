"""TLS: a certificate, its key and the CA of clients, checked before use and read again when they change.

Knows no transport but Python's own contexts; grpc's objects are made in grpc/tls.py.
"""

import logging
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.api.shared.file_watch import FileWatch
from coordinator.config.security import TlsConfig
from expertmesh.pem import load_ca, load_pair
from moe_model.errors import ConfigError
from moe_model.files.private_files import check_private, read_bounded

logger = logging.getLogger(__name__)

# Kinds of certificates.
SERVER, CLIENT_CA = "server", "client_ca"


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files held when they were read together, and a context made of it. `ends`: when the first
    certificate of each kind ends, in seconds since 1970."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext
    ends: Mapping[str, float]


class TlsFiles:
    """The newest usable material. For any thread: grpc asks on its own."""

    def __init__(self, config: TlsConfig, watch: FileWatch | None = None) -> None:
        """Raises ConfigError, naming the file at fault."""
        self.config = config
        self._watch = watch or FileWatch(config.paths)
        self._lock = threading.Lock()
        self._material = load(config)

    def current(self) -> TlsMaterial:
        """Looks at the files at most once a second. Broken ones leave everything as it was."""
        if self._watch.changed():
            with self._lock:
                self._reload()
        return self._material

    def _reload(self) -> None:
        try:
            self._material = load(self.config)
        except ConfigError as error:
            logger.error("%s; the certificate stays as it was", error)
        else:
            logger.info("TLS certificate read again")


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For a server on Python's own TLS; every handshake takes the newest material."""
    context = _context(files.config)

    def take_newest(handshake: ssl.SSLObject, name: str | None, original: ssl.SSLContext) -> None:
        handshake.context = files.current().context

    context.sni_callback = take_newest
    return context


def load(config: TlsConfig) -> TlsMaterial:
    """Raises ConfigError for a file that cannot be read, is not private, or does not work with the others."""
    check_private(config.key, "TLS key")
    before = _contents(config)
    context = _context(config)
    if _contents(config) != before:
        raise ConfigError(f"TLS certificate {config.cert}: changed while it was read")
    ends = {SERVER: _check_handshake(config), **_end_of(CLIENT_CA, context)}
    return TlsMaterial(before[0], before[1], before[2] if config.client_ca else None, context, ends)


def _contents(config: TlsConfig) -> tuple[bytes, ...]:
    return tuple(read_bounded(path, "TLS file") for path in config.paths)


def _context(config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_pair(context, config.cert, config.key)
    if config.client_ca is not None:
        load_ca(context, config.client_ca, "TLS client CA")
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would outlive the CA that its client was checked by.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def _check_handshake(config: TlsConfig) -> float:
    """Shakes hands in memory with a client that trusts just this certificate; when the first of its chain
    ends, in seconds since 1970. Raises ConfigError.

    It finds what no server would notice by itself: above all that a certificate has expired.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusting.load_verify_locations(cafile=config.cert)
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(asking, config.cert, config.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server)
    peers = (client, asking.wrap_bio(to_server, to_client, server_side=True))
    for peer in (*peers, *peers):
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            raise ConfigError(f"TLS certificate {config.cert}: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise ConfigError(f"TLS certificate {config.cert}: cannot be used ({error.reason})") from None
    shown = client.getpeercert()
    assert shown
    return min([_end(shown), *_end_of(SERVER, trusting).values()])


def _end_of(kind: str, context: ssl.SSLContext) -> dict[str, float]:
    """When the first of the authorities ends that a context trusts, if it trusts any."""
    ends = [_end(certificate) for certificate in context.get_ca_certs()]
    return {kind: min(ends)} if ends else {}


def _end(certificate: Mapping[str, object]) -> float:
    """Of a certificate as Python's library has it."""
    return float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))
