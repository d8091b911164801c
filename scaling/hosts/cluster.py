"""A Ray cluster of emulated hosts for cells: a head, and a host for each worker, that cells can be moved to.

Starting Ray takes seconds for each host, so a cluster is kept as long as its shape fits the next cell: quotas
and cables change while it runs.
"""

import os
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from msgspec import Struct

from scaling import cell as cells
from scaling.cell import Cell
from scaling.hosts.cables import Cables
from scaling.hosts.cpus import pin, shared_out
from scaling.hosts.namespaces import Host, Network
from scaling.hosts.ray_hosts import RayHosts, pids_of, wait_until
from scaling.link import Link

ACTOR = "ray::ExpertActor"
_EMPTY_TIMEOUT = 15.0


class ClusterShape(Struct, frozen=True):
    """What cannot be changed of a cluster that runs: the limit of each worker's host, in MB."""

    memory_mb: tuple[float | None, ...]

    @classmethod
    def of(cls, cell: Cell) -> "ClusterShape":
        return cls(tuple(host.memory_mb for host in caps_of(cell)))


class HostCluster:
    """A context manager: Ray has started on all hosts when its block begins. Worker's host i is named `w<i>`,
    that of the coordinator `head`. With no workers there is no Ray."""

    def __init__(self, shape: ClusterShape) -> None:
        self.shape = shape
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Raises RuntimeError, a line, where Ray does not start."""
        with ExitStack() as stack:
            self.network = stack.enter_context(Network())
            self.head = self.network.host("head")
            self.workers = [self._worker_host(i) for i in range(len(self.shape.memory_mb))]
            self.cables = stack.enter_context(Cables(self.network))
            _reach_without_proxy(self.head.address)
            self.ray = self._started_ray(stack) if self.workers else None
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def begin(self, cell: Cell) -> None:
        """Cables as the cell says, and processor time for a start: a worker makes as many threads as its host
        has whole cores, and one that has a part of a core would load its libraries for half a minute."""
        self.cables.set(links_of(cell, self.head, self.workers))
        self._limit_to_whole_cores(cell)

    def end(self, cell: Cell) -> None:
        """As before its caps: what is to end needs processor time for it as well."""
        self._limit_to_whole_cores(cell)

    def cap(self, cell: Cell) -> None:
        """From now on each worker's host has what the cell says."""
        quotas = [caps.cores for caps in caps_of(cell)]
        cpus = shared_out(quotas, os.sched_getaffinity(0))
        for host, quota, its_cpus in zip(self.workers, quotas, cpus, strict=True):
            limit(host, quota)
            pin(host.pids, its_cpus)

    def is_whole(self) -> bool:
        return self.ray is None or all(self.ray.is_up(host) for host in (self.head, *self.workers))

    def is_empty(self) -> bool:
        """Whether no host has a worker's process, or has none some seconds later."""
        hosts = (self.head, *self.workers)
        try:
            wait_until(lambda: not any(pids_of(host, ACTOR) for host in hosts), _EMPTY_TIMEOUT, "not empty")
        except TimeoutError:
            return False
        return True

    def _limit_to_whole_cores(self, cell: Cell) -> None:
        for host, caps in zip(self.workers, caps_of(cell), strict=True):
            limit(host, None if caps.cores is None else max(1.0, caps.cores))
            pin(host.pids, frozenset(os.sched_getaffinity(0)))

    def _worker_host(self, number: int) -> Host:
        host = self.network.host(f"w{number}")
        host.cap(None, self.shape.memory_mb[number])
        return host

    def _started_ray(self, stack: ExitStack) -> RayHosts:
        try:
            return stack.enter_context(RayHosts(self.head, self.workers))
        except (AssertionError, TimeoutError) as error:
            short = [host.name for host in self.workers if host.group and host.group.num_oom_kills]
            hint = f" (out of memory on {', '.join(short)}: Ray itself takes some 300 MB)" if short else ""
            raise RuntimeError(f"Ray did not start on the emulated hosts{hint}: {error}") from None


def caps_of(cell: Cell) -> tuple[cells.Host, ...]:
    """Of each worker's host."""
    return cell.hosts or (cells.Host(),) * cell.workers


def links_of(cell: Cell, head: Host, workers: list[Host]) -> dict[Host, Link]:
    """The cable of each host. Delay and loss are between two machines, so only the workers' cables have them.
    The coordinator's cable is as wide as the cell's link: all workers share it, as on a real switch."""
    links = {host: caps.link or cell.link for host, caps in zip(workers, caps_of(cell), strict=True)}
    return {head: Link(gbit=cell.link.gbit), **links}


def limit(host: Host, cores: float | None) -> None:
    """Raises RuntimeError."""
    if host.group is None:
        raise RuntimeError(f"{host.name} has no control group")
    host.group.limit_cores(cores)


def _reach_without_proxy(address: str) -> None:
    """What the environment says of proxies is about another network. Clients that this process starts see it
    as well."""
    for name in ("no_proxy", "no_grpc_proxy"):
        if name == "no_proxy" or name in os.environ:
            known = os.environ.get(name, "")
            os.environ[name] = f"{known},{address}".strip(",")
