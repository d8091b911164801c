"""RemoteExperts: the experts of a model on workers, as one thing: dispatched, supervised, exchanged."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from expert_workers.dispatch.dispatch import Dispatch
from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.pool_stats import PoolStats
from expert_workers.supervision.pending_changes import Scaled
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.supervision.worker_state import Member, WorkerState
from moe_model.layers.dispatch import ExpertKey
from moe_model.layers.router import Routing
from moe_model.versions.expert_versions import Catalog, ExpertModule

# Seconds.
CLOSE_MOMENT = 1.0


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker as the topology shows it. `experts` and `missing`, what it should hold and does not, are
    layer -> expert ids; `problem` says why it could not load those."""

    rank: int
    state: WorkerState
    node_id: str
    host: str
    hostname: str
    pid: int
    device: str
    experts: Mapping[int, tuple[int, ...]]
    missing: Mapping[int, tuple[int, ...]]
    problem: str
    routed_rows: int
    num_bytes: int
    num_losses: int
    last_loss: str


class RemoteExperts:
    """An ExpertBackend. `begin`, `finish`, `idle`, `wait_for_lost`, `found`, `switch`: one thread only."""

    def __init__(self, pool: ExpertPool, supervisor: Supervisor, close: Callable[[], None]) -> None:
        """`close` ends the workers, or leaves them; it is called last."""
        self._pool = pool
        self._supervisor = supervisor
        self._close = close

    def forward(self, layer: int, x_TD: Tensor, routing: Routing) -> Tensor:
        """As ExpertBackend. Raises ExpertsLostError."""
        return self._pool.forward(layer, x_TD, routing)

    def begin(self, layer: int, x_TD: Tensor, routing: Routing) -> Dispatch:
        return self._pool.begin(layer, x_TD, routing)

    def finish(self, begun: Dispatch) -> Tensor:
        return self._pool.finish(begun)

    def idle(self) -> None:
        """For when nothing is dispatched."""
        self._pool.idle()

    def wait_for_lost(self, timeout: float) -> bool:
        """Waits for lost experts, at most so many seconds; whether the step shall be tried again."""
        return self._pool.wait_for_lost(timeout)

    def found(self) -> None:
        """A step has lacked nothing."""
        self._pool.found()

    def prepare(self, module: ExpertModule) -> None:
        """As LivingExperts: returns when the module is wherever it shall be. Raises ExpertMeshError."""
        self._supervisor.prepare(module)

    def switch(self, catalog: Catalog) -> None:
        """As LivingExperts: what the routers' columns stand for from now on."""
        self._pool.switch(catalog)

    def release(self, keys: Sequence[ExpertKey]) -> None:
        """As LivingExperts: nobody uses these any more."""
        self._supervisor.release(keys)

    def scale(self, num_workers: int, timeout: float) -> Scaled:
        """Returns when there are so many workers and each holds its part, `timeout` seconds at most. Raises
        ExpertMeshError."""
        return self._supervisor.scale(num_workers, timeout)

    def holders(self, key: ExpertKey) -> tuple[int, ...]:
        """The ranks of the workers that hold a module. Any thread may ask."""
        return tuple(member.rank for member in self._supervisor.members() if key in member.held)

    @property
    def num_workers(self) -> int:
        """That are up."""
        return sum(member.is_ready for member in self._supervisor.members())

    @property
    def num_replicas(self) -> int:
        """On how many workers the expert is that is on the fewest."""
        held = Counter(key for m in self._supervisor.members() if m.is_ready for key in m.held)
        return min(held[key] for key in self._supervisor.expert_ids())

    def missing_experts(self) -> tuple[ExpertModule, ...]:
        """Those that nobody holds. Any thread may ask."""
        return self._pool.missing_experts()

    def stats(self) -> PoolStats:
        return self._pool.stats()

    def topology(self) -> tuple[WorkerRecord, ...]:
        """Any thread may ask."""
        workers, experts = self._pool.stats().workers, self._supervisor.expert_ids()
        return tuple(
            _record(member, experts, workers[member.rank].rows if member.rank in workers else 0)
            for member in self._supervisor.members()
        )

    def close(self) -> None:
        # What is under way has a moment; what still waits for a worker then ends with the worker.
        self._supervisor.close(CLOSE_MOMENT)
        self._pool.close()
        self._close()
        self._supervisor.close()


def _record(member: Member, expert_ids: Mapping[ExpertKey, int], routed_rows: int) -> WorkerRecord:
    info = member.info
    return WorkerRecord(
        rank=member.rank,
        state=member.state,
        node_id="" if info is None else info.node_id,
        host="" if info is None else info.host,
        hostname="" if info is None else info.hostname,
        pid=0 if info is None or not member.is_ready else info.pid,
        device="" if info is None else info.device,
        experts=_by_layer(member.held, expert_ids),
        missing=_by_layer(member.missing, expert_ids),
        problem=member.problem,
        routed_rows=routed_rows,
        num_bytes=0 if info is None else info.num_bytes,
        num_losses=member.num_losses,
        last_loss=member.last_loss,
    )


def _by_layer(keys: Iterable[ExpertKey], expert_ids: Mapping[ExpertKey, int]) -> dict[int, tuple[int, ...]]:
    layers: dict[int, set[int]] = {}
    for key in keys:
        if key in expert_ids:
            layers.setdefault(key[0], set()).add(expert_ids[key])
    return {layer: tuple(sorted(layers[layer])) for layer in sorted(layers)}
