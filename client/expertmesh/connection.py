"""How a client reaches a server: plain or TLS, with or without a certificate and a key of its own."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from expertmesh.address import check_address, proxy_options
from expertmesh.errors import ConfigError
from expertmesh.pem import load_ca, load_pair

OPTIONS = (
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # retries.py sends again what may be: grpc's own retries let a call outlive its deadline.
    ("grpc.enable_retries", 0),
    # A server that comes back is found soon; grpc waits for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """`ca` is the CA of the server's certificate: with it, or with `tls`, the connection is encrypted.

    `certificate` and `key` are the client's own, for servers that want one. `api_key` is sent with every
    call; without TLS any machine on the way can read it. `retries`: whether refused calls are sent again.
    """

    tls: bool = False
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    api_key: str | None = None
    retries: bool = True

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call."""
        return () if self.api_key is None else (("authorization", f"Bearer {self.api_key}"),)

    @property
    def is_encrypted(self) -> bool:
        return self.tls or self.ca is not None

    def open(self, address: str) -> grpc.Channel:
        """A channel for threads. Raises ConfigError for an address or a file that cannot be used."""
        options = _options(address)
        if not self.is_encrypted:
            return grpc.insecure_channel(address, options=options)
        return grpc.secure_channel(address, self._credentials(), options=options)

    def open_async(self, address: str) -> grpc.aio.Channel:
        """A channel for asyncio. Raises ConfigError for an address or a file that cannot be used."""
        options = _options(address)
        if not self.is_encrypted:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials(), options=options)

    def tls_context(self) -> ssl.SSLContext:
        """The same for Python's own TLS. Raises ConfigError, naming the file at fault."""
        # Not Python's default context, which writes the connection's secrets where SSLKEYLOGFILE says.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is None:
            context.load_default_certs()
        else:
            load_ca(context, self.ca, "TLS CA")
        if self.certificate is not None and self.key is not None:
            load_pair(context, self.certificate, self.key)
        context.set_alpn_protocols(["h2"])
        return context

    def _credentials(self) -> grpc.ChannelCredentials:
        # grpc would say of a file that it cannot use only that the server is not to be reached.
        self.tls_context()
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def _options(address: str) -> tuple[tuple[str, int], ...]:
    return (*OPTIONS, *proxy_options(check_address(address)))


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
