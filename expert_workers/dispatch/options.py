"""What a pool is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from expert_workers.dispatch.combine import Combine


class OnLoss(StrEnum):
    """What happens to rows whose worker is lost. AUTO: a replica; else the experts are loaded on a survivor;
    else in the coordinator; else the step waits for the worker. Each other one leaves some of it out."""

    AUTO = "auto"
    REPLICA = "replica"
    RELOAD = "reload"
    LOCAL = "local"
    WAIT = "wait"
    FAIL = "fail"

    @property
    def waits(self) -> bool:
        """Whether a step waits for experts that no worker holds."""
        return self not in (OnLoss.REPLICA, OnLoss.FAIL)

    @property
    def computes_here(self) -> bool:
        """Whether the coordinator computes experts that no worker can take."""
        return self in (OnLoss.AUTO, OnLoss.LOCAL)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """Seconds; a call may take `call_timeout` at most, and less, but not below `least_timeout`, where calls
    of its size usually take much less. `wait_timeout` is how long lost experts are waited for at most, from
    the first step that lacks them to the next that does not; `rescue_patience`, how much of that a step
    waits inside.

    `wire_dtype` is that of float32 rows as they travel to the workers; bfloat16 rows travel as they are. What
    comes back is float32 in any case.
    """

    call_timeout: float = 10.0
    least_timeout: float = 1.0
    wait_timeout: float = 30.0
    # What ends at a step's end, as a request's own time limit does, comes so much late at most.
    rescue_patience: float = 0.5
    hedge_floor: float = 0.01
    wire_dtype: str = "float32"
    combine: Combine = Combine.EXACT
    on_loss: OnLoss = OnLoss.AUTO
    epoch: int = 0
    # Of each expert; the pool's catalogs are of these.
    num_slices: int = 1
    # Whether a row has the same bits with the workers' kernels whatever the others are: then the rows of one
    # expert may go to several holders.
    splits_rows: bool = False
    # As a plan has it: what a row costs each worker, relative to the others, by rank; and the rows that cost
    # as much as that an expert has any, since its weights are read. Without costs, what is measured counts.
    first_costs: Mapping[int, float] = field(default_factory=dict)
    fixed_rows: float = 0.0
    # False: Python does what C could.
    native: bool = True
