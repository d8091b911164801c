"""What a supervisor is told, and what it tells others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from expert_workers.dispatch.options import OnLoss
from expert_workers.dispatch.routes import Routes
from expert_workers.placement.planned import Planned
from expert_workers.supervision.health import HealthOptions
from expert_workers.supervision.restart_policy import RestartOptions
from expert_workers.transports.base import FailureReason
from moe_model.errors import WorldError
from moe_model.kernels.same_bits import KernelKind
from moe_model.layers.dispatch import ExpertKey


class Published(Protocol):
    """What the supervisor needs of a pool."""

    def publish(self, routes: Routes) -> None: ...

    def give_up(self, why: WorldError) -> None:
        """Lost experts are not brought back any more."""

    @property
    def adopted(self) -> int: ...

    def loads(self) -> Mapping[ExpertKey, int]:
        """Rows by module, since the beginning."""

    def costs(self) -> Mapping[int, float]:
        """How many times longer than the quickest each worker takes for a row."""


class SupervisionObserver(Protocol):
    """Called on the supervisor's thread; must be quick and must not raise."""

    def lost(self, rank: int, reason: FailureReason) -> None:
        """A worker does not answer, or not as it should."""

    def restarted(self, rank: int, reason: FailureReason) -> None:
        """A worker that was lost is back as another process; `reason` is why it was lost."""

    def rebalanced(self, num_moved: int, seconds: float) -> None:
        """A new placement is complete; so many modules were loaded somewhere else."""


# Seconds.
DROP_AFTER = 2.0


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """Seconds. A worker that is not back after `restore_after` has its experts loaded elsewhere; a module
    stays for `drop_after` once the last step that could have asked for it there has begun. An interval of 0
    is never; `tick` is the longest time between two looks. `workers_per_node` 0: there are as many workers as
    were asked for; `has_machines`: they are on machines that may come and go. `kernels`: what this process
    computes with on its CPU, experts or not; None: nothing. `planned`: what the workers shall hold while
    all of its workers are there, and no others."""

    replicas: int = 1
    redundant: int = 0
    on_loss: OnLoss = OnLoss.AUTO
    workers_per_node: int = 0
    has_machines: bool = False
    restore_after: float = 3.0
    drop_after: float = DROP_AFTER
    tick: float = 0.5
    rebalance_interval: float = 60.0
    health: HealthOptions = field(default_factory=HealthOptions)
    restarts: RestartOptions = field(default_factory=RestartOptions)
    kernels: KernelKind | None = None
    planned: Planned | None = None
