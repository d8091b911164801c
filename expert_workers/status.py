"""WorkerStatus: one expert worker as everyone outside the supervisor sees it. Light: no torch, no Ray.

The supervisor makes it; the API, the metrics and the command line read it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class WorkerState(StrEnum):
    """STARTING: has not been ready yet. INCOMPLETE: answers, but lacks some of its experts. LOST: will be
    started again. DRAINING: is leaving. BROKEN: was lost so often that it is seldom started again."""

    STARTING = "starting"
    READY = "ready"
    INCOMPLETE = "incomplete"
    LOST = "lost"
    DRAINING = "draining"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker at one moment.

    `experts` and `missing`, what it should hold and does not, are layer -> expert ids; `problem` says why it
    could not load those. `kernels` is the instruction set that it computes with, or torch; `routed_rows` are
    the (token, expert) pairs that it has answered, over all layers, each slice of an expert by itself;
    `num_bytes` is the memory of its experts; `last_loss` says why it was last lost. A worker that has not
    answered yet has no process and no place: `pid` 0, empty names.
    """

    rank: int
    state: WorkerState
    node_id: str = ""
    host: str = ""
    hostname: str = ""
    pid: int = 0
    device: str = ""
    kernels: str = ""
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    missing: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    problem: str = ""
    routed_rows: int = 0
    num_bytes: int = 0
    num_losses: int = 0
    last_loss: str = ""

    @property
    def is_up(self) -> bool:
        """Whether it can be asked, for all of its experts or for some."""
        return self.pid != 0


@dataclass(frozen=True, slots=True)
class Scaled:
    """A change of the number of workers. `num_moved` counts modules that were loaded somewhere else."""

    num_before: int
    num_workers: int
    num_moved: int
    seconds: float


class Workers(Protocol):
    """The workers of a model as its operators see them; there may be none. Any thread may call."""

    @property
    def num_replicas(self) -> int:
        """On how many workers the expert with the fewest holders is; 0 where there are no workers."""

    @property
    def certificate_end(self) -> float | None:
        """When the first certificate between machines ends, in seconds since 1970; None without any."""

    def holders(self, key: tuple[int, int]) -> Sequence[int]:
        """The ranks of the workers that hold a module, by layer and slot."""

    def topology(self) -> Sequence[WorkerStatus]:
        """By rank; empty where all experts are in the coordinator's process."""

    def scale(self, num_workers: int, timeout: float) -> Scaled:
        """Returns when there are so many workers and each holds its part, `timeout` seconds at most. Raises
        NoWorkersError where all experts are in the coordinator's process, BoundWorkersError where workers
        follow machines, ExpertMeshError."""
