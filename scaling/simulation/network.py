"""Messages between machines: one after the other at each end; then delay, and what a loss costs.

Of a lost packet TCP knows by those behind it after a round trip and a quarter (RACK, RFC 8985, section 6.2);
where none is behind it, by a probe after two, and of a message of one packet 200 ms later (section 7.2;
Linux's TCP_RTO_MIN). A path that loses packets carries at most 1.22 MSS / (RTT √p) (Mathis, Semke, Mahdavi,
Ott: The macroscopic behavior of the TCP congestion avoidance algorithm, CCR 27 (3), 1997).
"""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from scaling.link import Link
from scaling.machines import Machines

# Of an Ethernet frame with the usual headers and time stamps.
MSS_BYTES = 1448
REORDERING, PROBE, LONE_PROBE_S = 1.25, 2.0, 0.2
MATHIS = 1.22
# Of networks whose delay nothing says, a loss is noticed no sooner than this: the clock of Linux's timers.
LEAST_RTT_S = 1e-3


class Way(NamedTuple):
    """Between two places: seconds of one way, and of a byte; of a loss, its share of packets."""

    delay_s: float
    byte_s: float
    loss: float

    @property
    def round_trip_s(self) -> float:
        return max(2 * self.delay_s, LEAST_RTT_S)


HERE = Way(0.0, 0.0, 0.0)


def way_of(delay_s: float, byte_s: float, loss: float) -> Way:
    """Of a path that carries so much, and no more than TCP gets through its losses."""
    if loss:
        most = MATHIS * MSS_BYTES / (max(2 * delay_s, LEAST_RTT_S) * math.sqrt(loss))
        byte_s = max(byte_s, 1 / most)
    return Way(delay_s, byte_s, loss)


class Ways(Protocol):
    """What a network is made of; places are machines, or hosts on one."""

    def way(self, one: str, other: str) -> Way: ...

    def byte_s(self, place: str) -> float:
        """Seconds that a byte takes of a place's own link."""


class MachineWays:
    """As a file of machines says. A machine's own link is as quick as the quickest of its paths."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def way(self, one: str, other: str) -> Way:
        if one == other:
            # What a byte costs on one machine is in the costs of a call.
            return HERE
        path = self._machines.path(one, other)
        return way_of(path.round_trip_us / 2e6, 8e-9 / path.gbit, path.loss_percent / 100)

    def byte_s(self, place: str) -> float:
        known = [path.gbit for path in self._machines.paths if place in path.between]
        link = self._machines.link
        known += [link.gbit] if link is not None and link.gbit is not None else []
        return 8e-9 / max(known, default=math.inf)


class CableWays:
    """Hosts on one machine, each at its own cable; the delays and losses of two cables add up."""

    def __init__(self, cables: Mapping[str, Link]) -> None:
        self._cables = cables

    def way(self, one: str, other: str) -> Way:
        ends = self._cables.get(one, Link()), self._cables.get(other, Link())
        kept = (1 - ends[0].loss_percent / 100) * (1 - ends[1].loss_percent / 100)
        byte_s = max(self.byte_s(one), self.byte_s(other))
        return way_of(sum(end.delay_ms for end in ends) / 1e3, byte_s, 1 - kept)

    def byte_s(self, place: str) -> float:
        gbit = self._cables.get(place, Link()).gbit
        return 0.0 if gbit is None else 8e-9 / gbit


class Network:
    """When messages arrive. Belongs to one simulation, whose time never goes back."""

    def __init__(self, ways: Ways, rng: np.random.Generator) -> None:
        self._ways, self._rng = ways, rng
        self._known: dict[tuple[str, str], Way] = {}
        self._bytes: dict[str, float] = {}
        self._free_up: dict[str, float] = {}
        self._free_down: dict[str, float] = {}
        # Until when a place's link carries nothing.
        self.cut_until: dict[str, float] = {}

    def way(self, one: str, other: str) -> Way:
        found = self._known.get((one, other))
        if found is None:
            found = self._known[one, other] = self._ways.way(one, other)
        return found

    def byte_s(self, place: str) -> float:
        found = self._bytes.get(place)
        if found is None:
            found = self._bytes[place] = self._ways.byte_s(place)
        return found

    def arrival(self, now: float, sender: str, receiver: str, num_bytes: float) -> float:
        """When a message that is handed over now is there as a whole."""
        if sender == receiver:
            return now
        way = self.way(sender, receiver)
        seconds = num_bytes * way.byte_s
        until = max(self.cut_until.get(sender, 0.0), self.cut_until.get(receiver, 0.0))
        start = max(now, self._free_up.get(sender, 0.0), until)
        self._free_up[sender] = start + num_bytes * self.byte_s(sender)
        first = start + way.delay_s + seconds - num_bytes * self.byte_s(receiver)
        received = max(first, self._free_down.get(receiver, 0.0)) + num_bytes * self.byte_s(receiver)
        self._free_down[receiver] = received
        return received + self.recovery(way, num_bytes)

    def recovery(self, way: Way, num_bytes: float) -> float:
        """What losses of one message's packets cost it: each round of losses a recovery."""
        waited, num_packets = 0.0, math.ceil(num_bytes / MSS_BYTES) if way.loss else 0
        while num_packets:
            num_lost = int(self._rng.binomial(num_packets, way.loss))
            if num_lost:
                is_tail = self._rng.random() < num_lost / num_packets
                waited += way.round_trip_s * (PROBE if is_tail else REORDERING)
                waited += LONE_PROBE_S if num_packets == 1 else 0.0
            num_packets = num_lost
        return waited
