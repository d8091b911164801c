"""What the arguments of a connection mean. Apart from these, which load no gRPC."""

import argparse
from pathlib import Path

from expertmesh.connection import Connection
from expertmesh.errors import ConfigError

MAX_KEY_BYTES = 4096


def connection(args: argparse.Namespace) -> Connection:
    """Raises ConfigError for options that need each other and for files that cannot be read."""
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ConfigError("--tls-cert and --tls-key need each other")
    if args.tls_cert is not None and not (args.tls or args.tls_ca):
        raise ConfigError("--tls-cert needs --tls or --tls-ca")
    api_key = None if args.api_key_file is None else _key(args.api_key_file)
    return Connection(args.tls, args.tls_ca, args.tls_cert, args.tls_key, api_key)


def _key(path: Path) -> str:
    try:
        data = path.read_bytes()[:MAX_KEY_BYTES]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    key = data.decode("ascii", "replace").strip()
    if not key or not key.isprintable() or not key.isascii():
        raise ConfigError(f"{path}: holds no API key")
    return key
