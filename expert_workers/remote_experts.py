"""RemoteExperts: the experts of a model on workers, as one thing: dispatched, supervised, exchanged."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from expert_workers.dispatch.pool import ExpertPool
from expert_workers.status import WorkerStatus
from expert_workers.supervision.supervisor import Supervisor
from expert_workers.supervision.worker_state import Member
from moe_model.layers.dispatch import ExpertKey

# Seconds.
CLOSE_MOMENT = 1.0


class RemoteExperts:
    """RunningExperts, and Workers, whose experts are on workers: a pool dispatches, a supervisor looks after
    who holds what."""

    answers_travel = True

    def __init__(self, pool: ExpertPool, supervisor: Supervisor, close: Callable[[], None]) -> None:
        """`close` ends the workers, or leaves them; it is called last."""
        self._pool, self._supervisor, self._close = pool, supervisor, close
        # The pool's own methods: a step calls these for every layer, and nothing lies between.
        self.forward, self.begin, self.finish = pool.forward, pool.begin, pool.finish
        self.switch, self.idle = pool.switch, pool.idle
        self.wait_for_lost, self.found = pool.wait_for_lost, pool.found
        self.missing_experts, self.stats = pool.missing_experts, pool.stats
        self.prepare, self.release, self.scale = supervisor.prepare, supervisor.release, supervisor.scale

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

    def topology(self) -> tuple[WorkerStatus, ...]:
        """Any thread may ask."""
        workers, experts = self._pool.stats().workers, self._supervisor.expert_ids()
        return tuple(
            _status(member, experts, workers[member.rank].rows if member.rank in workers else 0)
            for member in self._supervisor.members()
        )

    def close(self) -> None:
        # What is under way has a moment; what still waits for a worker then ends with the worker.
        self._supervisor.close(CLOSE_MOMENT)
        self._pool.close()
        self._close()
        self._supervisor.close()


def _status(member: Member, expert_ids: Mapping[ExpertKey, int], routed_rows: int) -> WorkerStatus:
    info = member.info
    return WorkerStatus(
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
