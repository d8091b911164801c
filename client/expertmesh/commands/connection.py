"""What the arguments of a connection mean. Apart from these, which load no gRPC."""

from pathlib import Path

from expertmesh.commands.connection_arguments import ConnectionArguments
from expertmesh.connection import Connection
from expertmesh.errors import ConfigError

MAX_KEY_BYTES = 4096


def connection(given: ConnectionArguments) -> Connection:
    """Raises ConfigError for a key file that cannot be read."""
    api_key = None if given.api_key_file is None else _key(given.api_key_file)
    return Connection(given.tls, given.tls_ca, given.tls_cert, given.tls_key, api_key)


def _key(path: Path) -> str:
    try:
        data = path.read_bytes()[:MAX_KEY_BYTES]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    key = data.decode("ascii", "replace").strip()
    if not key or not key.isprintable() or not key.isascii():
        raise ConfigError(f"{path}: holds no API key")
    return key
