"""The ports of a cluster's machines: all pinned, so that a firewall can let them through. Light."""

from collections.abc import Iterator
from dataclasses import dataclass

GCS_PORT, ENROL_PORT = 6379, 6380
# Of the six services of Ray's node, in this order from the first port on.
_SERVICES = (
    *("node manager", "object manager", "runtime environments", "metrics"),
    *("agent (gRPC)", "agent (HTTP)"),
)


@dataclass(frozen=True, slots=True)
class PortRange:
    """Both ends included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def overlaps(self, other: "PortRange") -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class NodePorts:
    """`first` is that of the node manager; the five after it are Ray's too."""

    first: int = 6381
    workers: PortRange = PortRange(20000, 20099)
    data: PortRange = PortRange(20100, 20199)

    @property
    def services(self) -> PortRange:
        return PortRange(self.first, self.first + len(_SERVICES) - 1)

    @property
    def ranges(self) -> tuple[PortRange, ...]:
        return self.services, self.workers, self.data

    def sample(self) -> tuple[int, ...]:
        """Those that stand for all when a firewall is looked for: each service's, and the ends of ranges."""
        ends = {end for each in (self.workers, self.data) for end in (each.first, each.last)}
        return (*range(self.first, self.services.last + 1), *sorted(ends))

    def all(self) -> Iterator[int]:
        for each in self.ranges:
            yield from range(each.first, each.last + 1)

    def name_of(self, port: int) -> str:
        """What listens there, for people."""
        if self.services.first <= port <= self.services.last:
            return f"Ray's {_SERVICES[port - self.first]}"
        if self.workers.first <= port <= self.workers.last:
            return "Ray's workers"
        return "rows" if self.data.first <= port <= self.data.last else "Ray's head"
