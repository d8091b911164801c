"""Backoff: peers that send wrong keys have to wait, longer each time. Bounded; lives on one event loop.

A key that has got in from an address before goes on getting in, so that one caller cannot lock out the
others behind the same address. Such a caller is not slowed in guessing the keys that are in use there.
"""

import ipaddress
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_NAMES = 32
# How gRPC writes a peer; HTTP's are HOST:PORT, without brackets.
_GRPC_PEER = re.compile(r"ipv[46]:(?:(?:%5B|\[)(?P<v6>.+)(?:%5D|\])|(?P<v4>[0-9.]+)):[0-9]+")


@dataclass(frozen=True, slots=True)
class BackoffConfig:
    """`num_failures` within `window` seconds begin a wait, which doubles from `first` up to `longest`."""

    num_failures: int = 10
    window: float = 60.0
    first: float = 1.0
    longest: float = 60.0
    max_peers: int = 4096


@dataclass(slots=True)
class _Peer:
    failures: int = 0
    window_ends: float = 0.0
    wait: float = 0.0
    blocked_until: float = 0.0
    # Keys that have got in from there, the latest last.
    names: OrderedDict[str, None] = field(default_factory=OrderedDict)


class Backoff:
    """Told of every key that was right or wrong."""

    def __init__(
        self, config: BackoffConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config or BackoffConfig()
        self._clock = clock
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def wait(self, peer: str, name: str | None) -> float:
        """Seconds until a key from there is looked at again. `name` is the key's, if it is valid."""
        found = self._peers.get(network_of(peer))
        if found is None or name in found.names:
            return 0.0
        return max(0.0, found.blocked_until - self._clock())

    def failed(self, peer: str) -> None:
        config, now, found = self._config, self._clock(), self._entry(peer)
        if now >= max(found.window_ends, found.blocked_until + config.window):
            found.failures, found.wait = 0, 0.0
            found.window_ends = now + config.window
        found.failures += 1
        if found.failures >= config.num_failures:
            found.wait = min(config.longest, found.wait * 2 or config.first)
            found.blocked_until = now + found.wait

    def succeeded(self, peer: str, name: str) -> None:
        names = self._entry(peer).names
        names[name] = None
        names.move_to_end(name)
        if len(names) > MAX_NAMES:
            names.popitem(last=False)

    def _entry(self, peer: str) -> _Peer:
        network = network_of(peer)
        found = self._peers.setdefault(network, _Peer())
        self._peers.move_to_end(network)
        if len(self._peers) > self._config.max_peers:
            self._peers.popitem(last=False)
        return found


def network_of(peer: str) -> str:
    """Whom a peer's address stands for, without the port: an IPv4 address, or an IPv6 /64.

    Everything that is no address counts as one peer.
    """
    match = _GRPC_PEER.fullmatch(peer)
    text = (match["v6"] or match["v4"]) if match else peer
    address = _address(text) or _address(text.rpartition(":")[0])
    if address is None:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Without the name of an interface, which link-local addresses come with."""
    try:
        return ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
