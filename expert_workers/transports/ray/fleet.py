"""RayFleet: expert workers as Ray actors. Ray starts again what has died; that it died, we find out.

The actors are detached and named, so they outlive the coordinator that started them.
"""

import logging
import threading
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import ActorAlreadyExistsError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from expert_workers.cluster.ray_cluster import is_reachable
from expert_workers.cluster.ray_errors import first_line
from expert_workers.processes import Process, kill_and_wait
from expert_workers.transports.base import AnyTransport, Failure, FailureReason, WorkerFailureError
from expert_workers.transports.fleet import URGENT, Machine, Supply
from expert_workers.transports.ray.actor import ExpertActor, NodeAgent
from expert_workers.transports.ray.links import ActorName, failure_of
from expert_workers.transports.ray.peers import FILE_SERVER, LENDING, NUM_LENDING, FileServer
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo, WorkerSpec
from moe_model.errors import ClusterError
from moe_model.layers.dispatch import ExpertKey
from moe_model.machine import num_oom_kills
from moe_model.versions.expert_versions import ExpertModule

_log = logging.getLogger(__name__)

_NAME = "expert-worker-"
_NUM_THREADS = 8
_END_TIMEOUT = 10.0
_KILL_TIMEOUT = 5.0


def actor_name(rank: int) -> str:
    return f"{_NAME}{rank}"


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """`spec` is every worker's, but for its rank. `host` is where a worker listens for rows; None: on its
    node's address in the cluster."""

    spec: WorkerSpec
    namespace: str
    transport: AnyTransport
    host: str | None = "127.0.0.1"


class RayFleet:
    """A Fleet: the expert actors of one namespace."""

    def __init__(self, options: FleetOptions) -> None:
        self._options = options
        self._actors: dict[int, Any] = {}
        self._infos: dict[int, WorkerInfo] = {}
        self._oom_kills: dict[int, int] = {}
        # Processes that were to be killed when their machine could not be reached: the order may yet arrive.
        self._condemned: set[tuple[str, Process]] = set()
        self._agents: dict[str, Any] = {}
        self._files: Any = None
        self._lending = threading.Lock()
        self._node_id = ray.get_runtime_context().get_node_id()

    def find(self) -> frozenset[int]:
        named = ray.util.list_named_actors(all_namespaces=True)
        names = [actor["name"] for actor in named if actor["namespace"] == self._options.namespace]
        return frozenset(int(name.removeprefix(_NAME)) for name in names if name.startswith(_NAME))

    def start(self, rank: int, node_id: str | None = None) -> None:
        self._actors[rank] = _launch(replace(self._options.spec, rank=rank), self._options, node_id)

    def describe(self, rank: int, timeout: float) -> WorkerInfo:
        info = self._info(rank, self._ask(rank, "describe", timeout=timeout))
        if info.node_id != self._node_id and info.node_id not in self._agents:
            self._agents[info.node_id] = _launch_agent(info.node_id)
        if _identity(info) in self._condemned:
            self._end_condemned(info)
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: its process was given up"))
        return info

    def beat(self, rank: int, client: str, timeout: float) -> WorkerInfo:
        return self._info(rank, self._ask(rank, "describe", client, timeout=timeout))

    def claim(self, rank: int, client: str, epoch: int, *, by_force: bool, timeout: float) -> None:
        self._ask(rank, "claim", client, epoch, by_force, timeout=timeout)
        # Not before: what lends files to another coordinator's workers is none of our business.
        info = self._infos.get(rank)
        if info is not None and not info.has_files and self._options.spec.offer is not None:
            self._lend_files()

    def load(
        self, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo:
        holders = list(map(actor_name, supply.holders))
        answer = self._ask(rank, "load", list(modules), holders, supply.is_urgent, timeout=timeout)
        return self._info(rank, answer)

    def unload(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> WorkerInfo:
        return self._info(rank, self._ask(rank, "unload", list(keys), timeout=timeout))

    def canary(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> Mapping[ExpertKey, Array]:
        found: dict[ExpertKey, Array] = self._ask(rank, "canary", list(keys), timeout=timeout)
        return found

    def endpoint(self, rank: int, timeout: float) -> Hashable:
        endpoint: Hashable = self._ask(rank, "endpoint", timeout=timeout)
        return endpoint

    def was_oom(self, info: WorkerInfo) -> bool:
        """Only of this machine's: the kernel says how many, not whom."""
        before = self._oom_kills.get(info.rank)
        return info.node_id == self._node_id and before is not None and num_oom_kills() > before

    def fence(self, info: WorkerInfo) -> None:
        if info.node_id == self._node_id:
            is_gone = not kill_and_wait(frozenset([_process(info)]), _KILL_TIMEOUT)
        else:
            is_gone = self._fence_far_away(info)
        if is_gone:
            self._condemned.discard(_identity(info))
        else:
            self._condemned.add(_identity(info))
            _log.error("worker %d: its process %d could not be killed", info.rank, info.pid)

    def end(self, ranks: Iterable[int]) -> None:
        ranks = sorted(ranks)
        # Asked for anything while it is not connected, Ray would start a new cluster; without its head, hang.
        if not ray.is_initialized() or not is_reachable():
            return
        for rank in ranks:
            actor = _find(rank, self._options.namespace)
            if actor is not None:
                ray.kill(actor, no_restart=True)
        deadline = time.monotonic() + _END_TIMEOUT
        for rank in ranks:
            _wait_unnamed(rank, self._options.namespace, deadline)
            self._actors.pop(rank, None)
            # Ray leaves a stopped process as it is, with all its memory. Until then its machine has an agent.
            if rank in self._infos:
                self.fence(self._infos[rank])
                self._infos.pop(rank, None)

    def check(self) -> None:
        if not is_reachable():
            raise ClusterError("the head of the Ray cluster is gone")

    def machines(self) -> tuple[Machine, ...]:
        leaving = state.get_draining_nodes()
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        able = [node for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
        self._leave_alone(set(leaving))
        return tuple(
            Machine(node["NodeID"], node["NodeID"] in leaving, node["NodeManagerAddress"]) for node in able
        )

    def close(self) -> None:
        for agent in self._agents.values():
            if ray.is_initialized() and is_reachable():
                ray.kill(agent)
        if self._files is not None and ray.is_initialized() and is_reachable():
            ray.kill(self._files)
        self._files = None
        self._agents.clear()
        self._actors.clear()

    def _lend_files(self) -> None:
        """From here on this machine lends what it has of the checkpoint to machines that have not."""
        with self._lending:
            if self._files is None:
                self._files = _launch_files(self._options, self._node_id)

    def _leave_alone(self, leaving: set[str]) -> None:
        """A machine that is rid of its workers is rid of all of us: Ray then lets it go."""
        with_workers = {info.node_id for info in list(self._infos.values())}
        for node_id in leaving & self._agents.keys() - with_workers:
            ray.kill(self._agents.pop(node_id))

    def _ask(self, rank: int, method: str, *args: Any, timeout: float) -> Any:
        try:
            return ray.get(getattr(self._actor(rank), method).remote(*args), timeout=timeout)
        except RayError as error:
            raise WorkerFailureError(failure_of(rank, error)) from None

    def _actor(self, rank: int) -> Any:
        actor = self._actors.get(rank) or _find(rank, self._options.namespace)
        if actor is None:
            message = f"worker {rank}: no Ray actor {actor_name(rank)!r} in {self._options.namespace!r}"
            raise WorkerFailureError(Failure(FailureReason.DIED, message))
        self._actors[rank] = actor
        return actor

    def _info(self, rank: int, value: object) -> WorkerInfo:
        if not isinstance(value, WorkerInfo):
            message = f"worker {rank}: describes itself by a {type(value).__name__}"
            raise WorkerFailureError(Failure(FailureReason.INVALID, message))
        self._infos[rank] = value
        self._oom_kills[rank] = num_oom_kills()
        return value

    def _end_condemned(self, info: WorkerInfo) -> None:
        """It answers again: quicker than a neighbour, it can do it itself."""
        try:
            self._ask(info.rank, "die", info.pid, timeout=_KILL_TIMEOUT)
        except WorkerFailureError as error:
            if error.failure.reason is FailureReason.DIED:
                self._condemned.discard(_identity(info))

    def _fence_far_away(self, info: WorkerInfo) -> bool:
        agent = self._agents.get(info.node_id)
        try:
            return agent is not None and bool(
                ray.get(agent.kill.remote(info.pid, info.start_ticks), timeout=_KILL_TIMEOUT)
            )
        except RayError as error:
            # A machine that cannot be reached. What its worker might still say is not listened to.
            _log.warning("worker %d: its machine does not answer: %s", info.rank, first_line(error))
            self._agents.pop(info.node_id, None)
            return False


def _process(info: WorkerInfo) -> Process:
    return Process(info.pid, info.start_ticks)


def _identity(info: WorkerInfo) -> tuple[str, Process]:
    """Of its process among those of all machines."""
    return info.node_id, _process(info)


def _launch(spec: WorkerSpec, options: FleetOptions, node_id: str | None) -> Any:
    name = actor_name(spec.rank)
    bound = None if node_id is None else NodeAffinitySchedulingStrategy(node_id, soft=False)
    settings = {
        "name": name,
        "namespace": options.namespace,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_task_retries": 0,
        "max_concurrency": _NUM_THREADS,
        # As good as none; but a node that offers none, as a head may, gets no workers.
        "num_cpus": 0.001,
        "scheduling_strategy": bound or "SPREAD",
        # Ray would report each call to its dashboard.
        "enable_task_events": False,
    }
    try:
        return (
            _lending(ExpertActor)
            .options(**settings)
            .remote(spec, options.transport, options.host, ActorName(name, options.namespace))
        )
    except ActorAlreadyExistsError:
        taken = f"Ray actor {name!r} exists already in namespace {options.namespace!r}"
        raise ClusterError(taken) from None
    except (RayError, ValueError) as error:
        raise ClusterError(f"worker {spec.rank}: Ray cannot start it: {first_line(error)}") from None


def _lending(actor: type[object]) -> Any:
    """A kind of actors that have threads of their own to lend files."""
    remote: Any = ray.remote
    return remote(concurrency_groups={LENDING: NUM_LENDING})(actor)


def _launch_agent(node_id: str) -> Any:
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(NodeAgent).options(num_cpus=0, scheduling_strategy=where).remote()


def _launch_files(options: FleetOptions, node_id: str) -> Any:
    """In the place of an earlier coordinator's, which may not be gone yet."""
    spec = options.spec
    with suppress(ValueError):
        ray.kill(ray.get_actor(FILE_SERVER, namespace=options.namespace))
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    server = _lending(FileServer).options(
        name=FILE_SERVER,
        namespace=options.namespace,
        num_cpus=0,
        max_restarts=-1,
        scheduling_strategy=where,
        enable_task_events=False,
    )
    deadline = time.monotonic() + _END_TIMEOUT
    while True:
        try:
            return server.remote(spec.checkpoint_path, spec.bytes_per_second)
        except ActorAlreadyExistsError:
            if time.monotonic() >= deadline:
                taken = f"Ray actor {FILE_SERVER!r} of {options.namespace!r} does not end"
                raise WorkerFailureError(Failure(FailureReason.RAISED, taken)) from None
            time.sleep(0.01)


def _find(rank: int, namespace: str) -> Any:
    try:
        return ray.get_actor(actor_name(rank), namespace=namespace)
    except ValueError:
        return None


def _wait_unnamed(rank: int, namespace: str, deadline: float) -> None:
    while _find(rank, namespace) is not None:
        if time.monotonic() >= deadline:
            _log.error("Ray still lists actor %s after it was ended", actor_name(rank))
            return
        time.sleep(0.01)
