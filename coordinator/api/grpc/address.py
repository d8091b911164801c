"""HOST:PORT as written on a command line, and whether a server can listen there."""

import errno
import ipaddress
import os
import re
import socket

from moe_model.errors import ConfigError

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.%a-z]+)\]|(?P<host>[^\s:\[\]/]+)):(?P<port>[0-9]{1,5})")


def parse_address(address: str, what: str = "grpc") -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises ConfigError."""
    match = _ADDRESS.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(f"{what} address {address[:80]!r}: expected HOST:PORT with a port in [0, 65535]")
    return match["v6"] or match["host"], int(match["port"])


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_free(host: str, port: int, what: str = "grpc") -> None:
    """Raises ConfigError when no server can listen there.

    grpc itself says why only on stderr, and takes part of a name's addresses when another part is taken.
    """
    where = f"{what} address {format_address(host, port)}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise ConfigError(f"{where}: unknown host") from None
    errors = [_listen_error(info[0], info[4]) for info in found]
    if errno.EADDRINUSE in errors:
        raise ConfigError(f"{where}: already in use")
    if all(errors):
        raise ConfigError(f"{where}: {os.strerror(errors[0])}")


def _listen_error(family: int, address: tuple[object, ...]) -> int:
    """The errno of listening there for a moment; 0 when it works."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return error.errno or errno.EIO
    return 0
