"""What a supervisor waits for, as plain functions over a fleet: each runs on a thread of its own."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from expert_workers.fleet import Fleet
from expert_workers.members import Keys
from expert_workers.transport import Failure, FailureReason, Link, WorkerFailureError
from expert_workers.wire import Array
from expert_workers.worker import WorkerInfo
from moe_model.dispatch import ExpertKey
from moe_model.modules import ExpertModule


@dataclass(frozen=True, slots=True)
class Expected:
    """What every worker must agree on, and who asks. None: whatever the worker says."""

    epoch: int = 0
    owner: str = ""
    dtype: str | None = None
    fingerprint: str | None = None
    by_force: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a worker is given to start, to get ready then, for a heartbeat, to load modules."""

    start: float = 120.0
    ready: float = 5.0
    answer: float = 10.0
    load: float = 120.0


@dataclass(frozen=True, slots=True)
class Up:
    """A worker that can be used. `canaries` are of what it holds already."""

    info: WorkerInfo
    link: Link
    canaries: Mapping[ExpertKey, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    info: WorkerInfo
    canaries: Mapping[ExpertKey, Array]


class Jobs:
    """Every method blocks, and raises WorkerFailureError."""

    def __init__(self, fleet: Fleet, expected: Expected, timeouts: Timeouts) -> None:
        self._fleet = fleet
        self._expected = expected
        self._timeouts = timeouts
        self._is_halted = False
        self._starting = threading.Lock()

    def bring_up(self, rank: int, known: Keys, *, is_back: bool = False) -> Up:
        """Starts the worker unless it runs, claims it, and connects. What it holds of `known` it keeps.

        One that `is_back` has little time to answer: what it was asked on its old way may stay unanswered.
        """
        fleet, expected, timeouts = self._fleet, self._expected, self._timeouts
        if rank not in fleet.find():
            self._start(rank)
        info = fleet.describe(rank, timeouts.ready if is_back else timeouts.start)
        # First of all: another coordinator's workers are none of our business, whatever they are.
        fleet.claim(rank, expected.epoch, expected.owner, by_force=expected.by_force, timeout=timeouts.ready)
        problem = mismatch(expected, rank, info)
        if problem:
            raise WorkerFailureError(Failure(FailureReason.RAISED, problem))
        stale = [key for key in info.keys if key not in known]
        if stale:
            info = fleet.unload(rank, stale, timeouts.load)
        canaries = self.canary(rank, info.keys) if info.keys else {}
        return Up(info, fleet.connect(rank, timeouts.ready), canaries)

    def load(self, rank: int, modules: Sequence[ExpertModule]) -> Loaded:
        info = self._fleet.load(rank, modules, self._timeouts.load)
        return Loaded(info, self.canary(rank, [module.key for module in modules]))

    def drop(self, rank: int, keys: Sequence[ExpertKey]) -> WorkerInfo:
        return self._fleet.unload(rank, keys, self._timeouts.load)

    def canary(self, rank: int, keys: Sequence[ExpertKey]) -> Mapping[ExpertKey, Array]:
        return self._fleet.canary(rank, keys, self._timeouts.load)

    def beat(self, rank: int) -> WorkerInfo:
        return self._fleet.beat(rank, self._timeouts.answer)

    def was_oom(self, info: WorkerInfo) -> bool:
        return self._fleet.was_oom(info)

    def num_nodes(self) -> int:
        """Raises ClusterError."""
        return self._fleet.num_nodes()

    def fence(self, info: WorkerInfo) -> None:
        self._fleet.fence(info)

    def halt(self) -> None:
        """No worker is started from now on: what is there then is all that is to be ended."""
        with self._starting:
            self._is_halted = True

    def _start(self, rank: int) -> None:
        with self._starting:
            if self._is_halted:
                raise WorkerFailureError(
                    Failure(FailureReason.RAISED, f"worker {rank}: is not started any more")
                )
            self._fleet.start(rank)

    def end(self, rank: int) -> None:
        self._fleet.end([rank])


def mismatch(expected: Expected, rank: int, info: WorkerInfo) -> str:
    """What is wrong with a worker's description of itself; empty when nothing is."""
    if info.rank != rank:
        return f"worker {rank}: says it is worker {info.rank}"
    if expected.dtype not in (None, info.dtype):
        return f"worker {rank}: computes in {info.dtype}, expected {expected.dtype}"
    if info.keys and expected.fingerprint not in (None, info.fingerprint):
        return f"worker {rank}: has loaded another checkpoint"
    return ""
