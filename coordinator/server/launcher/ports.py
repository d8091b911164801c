"""Ports that are taken before anything costly begins, and held for all fronts of one server.

A front that dies leaves no gap into which another program could come, and several fronts share one port: the
kernel deals new connections out to those that listen. Any other server, also one of this user, is refused.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from coordinator.api.grpc.address import check_free, format_address, parse_address
from coordinator.config.service import Addresses


@contextmanager
def held_ports(addresses: Addresses) -> Iterator[Addresses]:
    """The same, with the number of each port instead of 0, while the block lasts. Raises ConfigError."""
    with ExitStack() as stack:
        numbers = {}
        for name, address in addresses.all().items():
            host, port = parse_address(address, name)
            check_free(host, port, name)
            numbers[name] = format_address(host, _hold(host, port, name, stack))
        yield replace(addresses, **numbers)


def _hold(host: str, port: int, name: str, stack: ExitStack) -> int:
    """Every address of the host that can be had; the number of the port, which is the same at all."""
    for family, _, _, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            held = _held(family, (address[0], port, *address[2:]))
        except OSError:
            # Another program's since it was looked at, or no address of this machine.
            check_free(host, port, name)
            continue
        stack.callback(held.close)
        port = held.getsockname()[1]
    return port


def _held(family: int, address: tuple[object, ...]) -> socket.socket:
    """A socket that no client can connect to, and beside which only fronts of this user can listen."""
    # This one tells whether another program is there: it shares with none until it listens.
    with socket.socket(family, socket.SOCK_STREAM) as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(address)
        first.listen(1)
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held = socket.socket(family, socket.SOCK_STREAM)
        try:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                held.setsockopt(socket.SOL_SOCKET, option, 1)
            held.bind(first.getsockname())
            # Connections of an earlier server may linger; but no other may bind beside what is held here.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError:
            held.close()
            raise
    return held
