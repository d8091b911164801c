"""How a client reaches a server: plain or TLS, with or without a certificate and a key of its own."""

import json
from dataclasses import dataclass
from pathlib import Path

import grpc

from moe_model.errors import ConfigError

# Refused calls may be sent again; grpc does so only while nothing of an answer has come.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {"name": [{"service": "expertmesh.v1.GenerationService"}], "retryPolicy": _RETRY_POLICY},
    ]
}
OPTIONS = (
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """`ca` is the CA of the server's certificate: with it, or with `tls`, the connection is encrypted.

    `certificate` and `key` are the client's own, for servers that want one. `api_key` is sent with every
    call; without TLS everybody on the way can read it. `retries`: whether grpc sends refused calls again.
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
        """A channel for threads. Raises ConfigError naming the file that cannot be read."""
        if not self.is_encrypted:
            return grpc.insecure_channel(address, options=self._options)
        return grpc.secure_channel(address, self._credentials(), options=self._options)

    def open_async(self, address: str) -> grpc.aio.Channel:
        """A channel for asyncio. Raises ConfigError naming the file that cannot be read."""
        if not self.is_encrypted:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, self._credentials(), options=self._options)

    @property
    def _options(self) -> tuple[tuple[str, int | str], ...]:
        return OPTIONS if self.retries else (*OPTIONS, ("grpc.enable_retries", 0))

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
