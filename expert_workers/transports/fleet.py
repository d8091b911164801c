"""The seam between the supervisor and the workers' processes: started, asked, loaded, ended.

Knows no placement. Every method blocks until it is done or its time is over, may be called from any thread,
and raises WorkerFailureError, one line naming the worker.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule


@dataclass(frozen=True, slots=True)
class Machine:
    """One that could run workers. `is_leaving`: it is to be rid of those that it has, and gets no others.
    `address`: of its node in the cluster."""

    node_id: str
    is_leaving: bool = False
    address: str = ""


@dataclass(frozen=True, slots=True)
class Supply:
    """Where a worker without the files gets them: `holders` are workers that have them, `is_urgent`: requests
    wait for them. `is_far`: this worker has to get them, which may take its time."""

    holders: tuple[int, ...] = ()
    is_urgent: bool = True
    is_far: bool = False


URGENT = Supply()


class Fleet(Protocol):
    """Workers by rank."""

    def find(self) -> frozenset[int]:
        """The ranks that run already."""

    def start(self, rank: int, node_id: str | None = None) -> None:
        """Starts a worker that holds nothing; returns at once. If its process dies, it is started again:
        nowhere but on that machine, where one is named."""

    def describe(self, rank: int, timeout: float) -> WorkerInfo:
        """What the worker says of itself. Waits for a process that is just being started."""

    def beat(self, rank: int, client: str, timeout: float) -> WorkerInfo:
        """The same for a worker that this client has claimed: so the worker hears that the client lives.
        FENCED: it is another client's now."""

    def claim(self, rank: int, client: str, epoch: int, *, by_force: bool, timeout: float) -> None:
        """From now on the worker answers the client's calls of this epoch. FENCED: another client has it."""

    def load(
        self, rank: int, modules: Sequence[ExpertModule], timeout: float, supply: Supply = URGENT
    ) -> WorkerInfo: ...

    def unload(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> WorkerInfo: ...

    def canary(self, rank: int, keys: Sequence[ExpertKey], timeout: float) -> Mapping[ExpertKey, Array]:
        """What each module makes of one row that is always the same."""

    def endpoint(self, rank: int, timeout: float) -> Hashable:
        """Where the process that runs now is reached, as its transport's `connect` takes it."""

    def was_oom(self, info: WorkerInfo) -> bool:
        """Whether this process, which is gone, was probably killed for want of memory."""

    def fence(self, info: WorkerInfo) -> None:
        """Kills this process, whatever state it is in, and no later one."""

    def end(self, ranks: Iterable[int]) -> None:
        """Ends workers for good."""

    def check(self) -> None:
        """Raises ClusterError, within seconds, when what keeps workers alive is gone."""

    def machines(self) -> tuple[Machine, ...]:
        """Those that there are. May wait for long, or for ever, where `check` would raise."""

    def close(self) -> None:
        """Lets go of all; the workers stay."""
