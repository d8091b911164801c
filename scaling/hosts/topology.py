"""Cells whose workers have a host each: network namespaces with caps, links and faults, on this machine.

`hosts[i]` of a cell and `worker` of a fault are the host `w<i>`; which rank its worker has, the server says.
"""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks import process_tree
from benchmarks.server_process import ENGINE_MODULE, FRONT_MODULE
from expertmesh import ClientError, ControlClient
from scaling.cell import Cell, Fault
from scaling.hosts.cluster import ACTOR, ClusterShape, HostCluster, caps_of, limit
from scaling.hosts.faults import worker_fault
from scaling.hosts.groups import missing_groups
from scaling.hosts.head_server import START_TIMEOUT, HeadServer
from scaling.hosts.links import partition
from scaling.hosts.namespaces import missing_capability
from scaling.hosts.ray_hosts import pids_of


class NamespaceTopology:
    """A Topology, and a context manager: it keeps the hosts of one cell for the next, until a cell needs
    others (another number of workers, other limits of memory), a server did not end as it should, or it is
    closed. For one thread, and for one server at a time."""

    def __init__(self, start_timeout: float = START_TIMEOUT) -> None:
        self._start_timeout = start_timeout
        self._cluster: HostCluster | None = None
        # How often hosts were made.
        self.num_clusters = 0

    def missing(self, cell: Cell) -> str:
        """What this machine lacks for it, in one line; empty: it can be tried."""
        return missing_capability() or missing_groups()

    @contextmanager
    def start(
        self, cell: Cell, checkpoint: Path, arguments: Sequence[str], log: Path
    ) -> Iterator["RunningHosts"]:
        """As Topology.start."""
        try:
            cluster = self._cluster_for(cell)
            cluster.begin(cell)
            server = HeadServer(cluster, checkpoint, arguments, log, self._start_timeout)
            with server:
                cluster.cap(cell)
                try:
                    yield RunningHosts(cluster, server, cell)
                finally:
                    cluster.end(cell)
            if not (server.ended_by_itself and cluster.is_empty()):
                self.close()
        except BaseException:
            # Nothing is known of what is left there.
            self.close()
            raise

    def close(self) -> None:
        """Idempotent."""
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            cluster.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cluster_for(self, cell: Cell) -> HostCluster:
        shape = ClusterShape.of(cell)
        if self._cluster is not None and (self._cluster.shape != shape or not self._cluster.is_whole()):
            self.close()
        if self._cluster is None:
            self._cluster = HostCluster(shape).__enter__()
            self.num_clusters += 1
        return self._cluster


class RunningHosts:
    """A Running. Beside what that says: `machines`, the address of each host, `head`, `w0`, ..."""

    def __init__(self, cluster: HostCluster, server: HeadServer, cell: Cell) -> None:
        self._cluster, self._server, self._cell = cluster, server, cell
        workers = {f"w{i}": host.address for i, host in enumerate(cluster.workers)}
        self.machines: Mapping[str, str] = {"head": cluster.head.address, **workers}

    @property
    def grpc_address(self) -> str:
        return self._server.addresses["grpc"]

    @property
    def http_address(self) -> str:
        return self._server.addresses["http"]

    @property
    def control_address(self) -> str:
        return self._server.addresses["control"]

    def ranks(self) -> dict[str, int]:
        """The rank of the worker on each host that has one, by the host's name: as the server says now."""
        names = {address: name for name, address in self.machines.items()}
        with ControlClient(self.control_address) as control:
            workers = control.topology()
        return {names[worker.host]: worker.rank for worker in workers if worker.host in names}

    def pids(self) -> dict[str, list[int]]:
        """The processes that serve, by role: coordinator, engine, front, workers, ray."""
        found: dict[str, list[int]] = {name: [] for name in ("coordinator", "engine", "front", "workers")}
        for process in process_tree.tree(self._server.pid):
            role = "engine" if process.runs(ENGINE_MODULE) else "coordinator"
            found["front" if process.runs(FRONT_MODULE) else role].append(process.pid)
        hosts = (self._cluster.head, *self._cluster.workers)
        found["workers"] = [pid for host in hosts for pid in pids_of(host, ACTOR)]
        known = {pid for pids in found.values() for pid in pids}
        found["ray"] = sorted({pid for host in hosts for pid in host.pids()} - known)
        return found

    def run_on(self, number: int, *command: str, timeout: float = 300.0) -> bytes:
        """What a command says that runs on the host `w<number>`, under its caps. Raises RuntimeError where it
        fails, also where it has not ended in time."""
        process = self._cluster.workers[number].popen(
            *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            said, error = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise RuntimeError(f"{command[-1]} on w{number}: not ended after {timeout:.0f} s") from None
        if process.returncode:
            raise RuntimeError(f"{command[-1]} on w{number}: {error.decode(errors='replace')[-500:]}")
        return said

    def inject(self, fault: Fault) -> AbstractContextManager[None]:
        """As Running.inject."""
        if fault.worker >= len(self._cluster.workers):
            raise RuntimeError(f"there is no host w{fault.worker}")
        if fault.kind == "cut":
            return self._cut(fault)
        if fault.kind == "slow":
            return self._slowed(fault)
        return worker_fault(fault, self._pid_on(fault.worker))

    @contextmanager
    def _cut(self, fault: Fault) -> Iterator[None]:
        with ExitStack() as undo:
            undo.callback(partition(self._cluster.workers[fault.worker]).start().heal, must_have_acted=False)
            yield

    @contextmanager
    def _slowed(self, fault: Fault) -> Iterator[None]:
        """The host's quota, as its group may not be left by one of its processes."""
        host, cores = self._cluster.workers[fault.worker], caps_of(self._cell)[fault.worker].cores
        with ExitStack() as undo:
            undo.callback(limit, host, cores)
            limit(host, fault.share * (cores or len(os.sched_getaffinity(0))))
            yield

    def _pid_on(self, number: int) -> int:
        address = self.machines[f"w{number}"]
        try:
            with ControlClient(self.control_address) as control:
                pids = [worker.pid for worker in control.topology() if worker.host == address]
        except ClientError as error:
            raise RuntimeError(f"the server does not say where its workers are: {error}") from None
        if not pids or not pids[0]:
            raise RuntimeError(f"there is no worker on w{number} now")
        return pids[0]
