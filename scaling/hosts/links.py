"""Faults on the cables of a Network: each has a beginning and an end, and counts what it has done.

The rules are in the router's namespace, so a host sees what it would see of a real network: its own system
calls succeed, and packets are lost under way.
"""

import itertools
import json
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from scaling.hosts.namespaces import Host, Network
from scaling.hosts.relay import Relay

_numbers = itertools.count(1)


class Fault:
    """Something wrong with a network. A context manager, or `start` and `heal`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._is_on = False
        self._healed_count = 0

    @property
    def count(self) -> int:
        """What it has done: packets, unless it says otherwise. Of all times that it was on, together."""
        return self._healed_count + (self._read() if self._is_on else 0)

    def start(self) -> Self:
        assert not self._is_on, f"{self.name}: is on already"
        self._begin()
        self._is_on = True
        return self

    def heal(self, *, must_have_acted: bool = True) -> int:
        """Ends it; the count. AssertionError when there was nothing to act upon: no fault has happened."""
        assert self._is_on, f"{self.name}: is not on"
        self._healed_count = self.count
        self._is_on = False
        self._end()
        assert self.count > 0 or not must_have_acted, f"{self.name}: was on and did nothing"
        return self.count

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_on:
            self.heal(must_have_acted=error is None)

    def _begin(self) -> None:
        raise NotImplementedError

    def _read(self) -> int:
        raise NotImplementedError

    def _end(self) -> None:
        raise NotImplementedError


class Filter(Fault):
    """What the router does to packets that match, instead of passing them on."""

    def __init__(self, name: str, network: Network, matches: Sequence[str], verdict: str = "-j DROP") -> None:
        super().__init__(name)
        self._router = network.router
        self._chain = f"fault-{next(_numbers)}"
        self._rules = [f"FORWARD {match} -j {self._chain}" for match in matches]
        self._verdict = verdict

    def _begin(self) -> None:
        add = [f":{self._chain} - [0:0]", f"-A {self._chain} {self._verdict}"]
        # First, so that two faults of one link both act: what one of them passes on, the next still sees.
        self._restore(*add, *(f"-I {rule}" for rule in self._rules))

    def _read(self) -> int:
        listed = self._router.run("iptables", "-w", "-nvxL", self._chain).splitlines()
        return int(listed[2].split()[0])

    def _end(self) -> None:
        self._restore(*(f"-D {rule}" for rule in self._rules), f"-F {self._chain}", f"-X {self._chain}")

    def _restore(self, *lines: str) -> None:
        """All of it or nothing, at one moment."""
        text = "\n".join(("*filter", *lines, "COMMIT", ""))
        self._router.run("iptables-restore", "-w", "--noflush", stdin=text)


def partition(host: Host, *peers: Host) -> Filter:
    """Nothing passes, neither way, between a host and these peers, or without any between it and all."""
    return Filter(f"partition of {host.name}", host.network, _both_ways(host, peers))


def one_way(host: Host, *peers: Host) -> Filter:
    """What the host sends is lost; it still hears the others."""
    return Filter(f"one-way partition of {host.name}", host.network, _from(host, peers))


def reset(host: Host, *peers: Host) -> Filter:
    """Each TCP packet from or to the host is answered with a reset to its sender."""
    matches = [f"{match} -p tcp" for match in _both_ways(host, peers)]
    return Filter(f"resets at {host.name}", host.network, matches, "-p tcp -j REJECT --reject-with tcp-reset")


def loss(host: Host, probability: float, *peers: Host) -> Filter:
    """Each packet from or to the host is lost with this probability."""
    matches = [
        f"{match} -m statistic --mode random --probability {probability}" for match in _both_ways(host, peers)
    ]
    return Filter(f"{probability:.0%} loss at {host.name}", host.network, matches)


def _from(host: Host, peers: Sequence[Host]) -> list[str]:
    return [f"-i {host.port} -o {peer.port}" for peer in peers] or [f"-i {host.port}"]


def _both_ways(host: Host, peers: Sequence[Host]) -> list[str]:
    to = [f"-i {peer.port} -o {host.port}" for peer in peers] or [f"-o {host.port}"]
    return [*_from(host, peers), *to]


class Unplug(Fault):
    """The cable is out. Counts how often the host has seen its link go away."""

    def __init__(self, host: Host) -> None:
        super().__init__(f"unplugged cable of {host.name}")
        self._host = host

    def _begin(self) -> None:
        self._host.network.router.run("ip", "link", "set", self._host.port, "down")

    def _read(self) -> int:
        (link,) = json.loads(self._host.run("ip", "-j", "link", "show", self._host.device))
        return int("NO-CARRIER" in link["flags"])

    def _end(self) -> None:
        self._host.network.plug_in(self._host)


class Bandwidth(Fault):
    """A host's cable carries so many bits a second each way. Counts the packets that had to wait."""

    def __init__(
        self, host: Host, bits_per_second: int, queue_seconds: float = 0.4, burst_bytes: int = 16_384
    ) -> None:
        super().__init__(f"{bits_per_second / 1e6:g} Mbit/s at {host.name}")
        self._ends = ((host.network.router, host.port), (host, host.device))
        # A bucket smaller than the largest packet would let none pass.
        self._limit = f"rate {bits_per_second}bit burst {burst_bytes}b latency {queue_seconds * 1e3:.0f}ms"

    def _begin(self) -> None:
        for namespace, device in self._ends:
            namespace.run("tc", *f"qdisc add dev {device} root tbf {self._limit}".split())

    def _read(self) -> int:
        count = 0
        for namespace, device in self._ends:
            shown = json.loads(namespace.run("tc", "-s", "-j", "qdisc", "show", "dev", device))
            count += sum(qdisc.get("overlimits", 0) for qdisc in shown if qdisc["kind"] == "tbf")
        return count

    def _end(self) -> None:
        for namespace, device in self._ends:
            namespace.run("tc", "qdisc", "del", "dev", device, "root")


class Delay(Fault):
    """What a relayed host sends and gets is so many seconds under way. Counts the frames that were."""

    def __init__(self, host: Host, seconds: float, jitter: float = 0.0) -> None:
        super().__init__(f"{seconds * 1e3:g} ms of delay at {host.name}")
        assert host.relay is not None, f"{host.name} has no relay"
        self._relay: Relay = host.relay
        self._delays = (seconds, jitter)
        self._count_before = 0

    def _begin(self) -> None:
        self._count_before = self._relay.set(*self._delays)

    def _read(self) -> int:
        return self._relay.set(*self._delays) - self._count_before

    def _end(self) -> None:
        self._relay.set(0.0)
