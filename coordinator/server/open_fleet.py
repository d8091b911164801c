"""The way to the workers' processes: a Ray cluster of our own or another's, or this process.

Part of the composition root, with main.py.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from coordinator.config.engine import EngineConfig
from coordinator.config.workers import WorkersConfig
from coordinator.server.compute import dtype_of
from coordinator.server.environment import API_KEY_VARIABLE
from expert_workers.cluster.place import OwnRay
from expert_workers.cluster.ray_cluster import RayCluster
from expert_workers.cluster.ray_environment import changed_environment
from expert_workers.machines.cluster_folder import CA, CERT, KEY, ClusterFolder
from expert_workers.tls import TlsPaths
from expert_workers.transports.base import AnyTransport, TransportOptions, WorkerFailureError
from expert_workers.transports.fleet import Fleet, Machine
from expert_workers.transports.in_process.fleet import LocalFleet
from expert_workers.transports.ray.fleet import FleetOptions, RayFleet
from expert_workers.transports.table import make_transport
from expert_workers.worker.expert_worker import WorkerInfo, WorkerSpec
from expert_workers.worker.offer import Offer
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import ClusterError
from moe_model.files.private_files import check_private
from moe_model.halt import Halt
from moe_model.machine import Cores, usable_cores
from moe_model.remote.folder_source import listing_of
from moe_model.remote.url import is_url

# Between two looks for machines.
_LOOK_SECONDS = 0.25


@contextmanager
def open_transport(config: WorkersConfig) -> Iterator[AnyTransport]:
    """While it lasts, this process also has what the folder of `--cluster` says of Ray, its token and TLS:
    transport and fleet find their files by that. Raises ConfigError."""
    if config.cluster is None:
        yield make_transport(config.transport, TransportOptions(data_tls(config)))
        return
    folder = ClusterFolder.find(config.cluster)
    with changed_environment(folder.environment(folder.membership())):
        yield make_transport(config.transport, TransportOptions(data_tls(config)))


@contextmanager
def open_fleet(
    spec: WorkerSpec, transport: AnyTransport, config: WorkersConfig, own_ray: OwnRay | None = None
) -> Iterator[Fleet]:
    """The way to start workers; what was started on the way to it ends with the block."""
    if not transport.spans_processes:
        local = LocalFleet(spec, transport)
        try:
            yield local
        finally:
            local.close()
        return
    cluster = _open_cluster(config, own_ray)
    try:
        # A cluster of our own is on this machine alone, and so is its data plane.
        host = None if config.is_on_running_ray else "127.0.0.1"
        fleet = RayFleet(FleetOptions(spec, config.ray_namespace, transport, host))
        try:
            yield fleet
        finally:
            fleet.close()
    finally:
        cluster.close()


def _open_cluster(config: WorkersConfig, own_ray: OwnRay | None) -> RayCluster:
    if config.cluster is not None:
        return RayCluster.connect(ClusterFolder.find(config.cluster).membership().head)
    if config.ray_address is not None:
        return RayCluster.connect(config.ray_address, insecure=config.insecure)
    if own_ray is not None:
        return RayCluster.join(own_ray())
    return RayCluster.start_local(hidden=[API_KEY_VARIABLE])


def data_tls(config: WorkersConfig) -> TlsPaths | None:
    """Raises ConfigError for a key that others can read."""
    if config.cluster is not None:
        return _tls_of_cluster(ClusterFolder.find(config.cluster))
    files = config.data_tls
    if files is None:
        return None
    check_private(files.key, "data plane TLS key")
    return TlsPaths(*(str(path.resolve()) for path in (files.cert, files.key, files.ca)))


def _tls_of_cluster(folder: ClusterFolder) -> TlsPaths | None:
    """By names, which each process finds in the folder of its own machine."""
    if not folder.membership().has_tls:
        return None
    check_private(folder.file(KEY), "data plane TLS key")
    return TlsPaths(CERT, KEY, CA)


def worker_spec(checkpoint: Checkpoint, engine: EngineConfig, workers: WorkersConfig) -> WorkerSpec:
    """What every worker is made of, but for its rank."""
    num_threads = workers.num_threads
    if num_threads is None and not workers.is_on_running_ray:
        num_threads = threads_of_each(workers.workers_per_node or workers.num_workers, usable_cores())
    return WorkerSpec(
        0,
        checkpoint.location,
        dtype_of(engine),
        num_threads=num_threads,
        fingerprint=checkpoint.fingerprint,
        kernels=engine.kernels,
        form=engine.expert_dtype,
        num_slices=engine.expert_slices,
        instruction_set=engine.instruction_set,
        offer=_offer(checkpoint, workers),
        bytes_per_second=workers.fetch_rate * 1e6 or None,
    )


def _offer(checkpoint: Checkpoint, workers: WorkersConfig) -> Offer | None:
    """To machines of a running cluster that do not have the files, unless they have them from where we do."""
    if not workers.is_on_running_ray or is_url(checkpoint.location):
        return None
    return Offer(checkpoint.name, listing_of(checkpoint))


def threads_of_each(num_workers: int, cores: Cores) -> int:
    """Of workers that share these cores: their share, and as much again where only the cores are the limit,
    for what a layer gives them to do is uneven."""
    share = cores.number / num_workers
    return max(1, min(cores.number, int(share if cores.is_quota else 2 * share)))


def describe_all(fleet: Fleet, ranks: Iterable[int], timeout: float, halt: Halt) -> dict[int, WorkerInfo]:
    """Of the workers that answer. Those that do not are stopped, or just being started."""
    found = {}
    for rank in sorted(ranks):
        halt.check()
        with suppress(WorkerFailureError):
            found[rank] = fleet.describe(rank, timeout)
    return found


def wait_for_machines(
    fleet: Fleet, at_least: int, timeout: float, halt: Halt, on_number: Callable[[int], None]
) -> tuple[Machine, ...]:
    """Those of the cluster, once there are so many; `on_number` is told how many there are. Raises
    ClusterError after `timeout` seconds, HaltedError."""
    deadline, before = time.monotonic() + timeout, -1
    while True:
        fleet.check()
        machines = fleet.machines()
        number = sum(not machine.is_leaving for machine in machines)
        if number >= at_least:
            return machines
        if time.monotonic() >= deadline:
            raise ClusterError(
                f"{number} of {at_least} machines are in the cluster after {timeout:g} s: start expertmesh "
                "join, or a Ray node with CPUs, on the others, or ask for fewer (--min-machines)"
            )
        if number != before:
            on_number(number)
        before = number
        halt.wait(_LOOK_SECONDS)
