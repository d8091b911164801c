"""SupervisedWorker: what the supervisor knows of one worker, and what it tells others of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from expert_workers.dispatch.routes import HERE, Address
from expert_workers.status import WorkerState, WorkerStatus
from expert_workers.supervision.restart_policy import RestartPolicy
from expert_workers.transports.base import Failure, FailureReason
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.layers.dispatch import ExpertKey

Keys = frozenset[ExpertKey]


@dataclass(slots=True)
class Surplus:
    """Keys that routes of `version` and later no longer name there; `since`: when those were adopted."""

    keys: Keys
    version: int
    since: float | None = None


@dataclass(slots=True)
class SupervisedWorker:
    """One worker, on the supervisor's thread. `is_busy`: a job, number `num_jobs`, is at it; `held` is what
    its process has loaded, `missing` what it should hold besides, and `problem` why it could not load that;
    `is_needed`: some of that no worker holds.
    `address` is there while it can be asked. `bound_to` is the only machine that it may run on, None: any."""

    rank: int
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    bound_to: str | None = None
    info: WorkerInfo | None = None
    address: Address | None = None
    held: Keys = frozenset()
    missing: Keys = frozenset()
    problem: str = ""
    is_busy: bool = False
    num_jobs: int = 0
    is_leaving: bool = False
    is_needed: bool = False
    num_losses: int = 0
    last_loss: str = ""
    last_reason: FailureReason | None = None
    lost_at: float | None = None
    surplus: Surplus | None = None
    canaries: dict[ExpertKey, Array] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether it is no worker, but the coordinator's own process."""
        return self.rank == HERE

    @property
    def is_ready(self) -> bool:
        return self.address is not None

    @property
    def machine(self) -> str | None:
        """Where it runs, or shall run; None while only the cluster knows."""
        return self.bound_to if self.bound_to is not None or self.info is None else self.info.node_id

    @property
    def state(self) -> WorkerState:
        if self.is_leaving:
            return WorkerState.DRAINING
        if self.is_ready:
            return WorkerState.INCOMPLETE if self.missing else WorkerState.READY
        if self.policy.is_open:
            return WorkerState.BROKEN
        return WorkerState.STARTING if self.lost_at is None else WorkerState.LOST

    def note_wish(self, wish: Keys) -> None:
        """What it shall hold, as things are now."""
        self.missing = wish - self.held if self.is_ready else frozenset()
        if not self.missing:
            self.problem = ""

    def note_held(self, info: WorkerInfo) -> None:
        """What its process has loaded, as it says."""
        self.info, self.held = info, frozenset(info.keys)

    def note_loss(self, failure: Failure, now: float) -> None:
        """It cannot be asked any more. When it was first lost is kept until it is back."""
        self.address, self.held, self.surplus = None, frozenset(), None
        self.num_losses += 1
        self.last_loss, self.last_reason = failure.message, failure.reason
        self.lost_at = now if self.lost_at is None else self.lost_at
        self.policy.failed(now)

    def status(self, expert_ids: Mapping[ExpertKey, int], routed_rows: int) -> WorkerStatus:
        """What others see of it. `expert_ids` are what people call each module."""
        info = self.info
        return WorkerStatus(
            rank=self.rank,
            state=self.state,
            node_id="" if info is None else info.node_id,
            host="" if info is None else info.host,
            hostname="" if info is None else info.hostname,
            pid=0 if info is None or not self.is_ready else info.pid,
            device="" if info is None else info.device,
            kernels="" if info is None or info.kernels is None else info.kernels.name,
            experts=_by_layer(self.held, expert_ids),
            missing=_by_layer(self.missing, expert_ids),
            problem=self.problem,
            routed_rows=routed_rows,
            num_bytes=0 if info is None else info.num_bytes,
            num_losses=self.num_losses,
            last_loss=self.last_loss,
        )


def _by_layer(keys: Iterable[ExpertKey], expert_ids: Mapping[ExpertKey, int]) -> dict[int, tuple[int, ...]]:
    layers: dict[int, set[int]] = {}
    for key in keys:
        if key in expert_ids:
            layers.setdefault(key[0], set()).add(expert_ids[key])
    return {layer: tuple(sorted(layers[layer])) for layer in sorted(layers)}
