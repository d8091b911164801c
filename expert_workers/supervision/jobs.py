"""What a supervisor waits for, as plain functions over a fleet: each runs on a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from expert_workers.dispatch.routes import Address
from expert_workers.supervision.worker_state import Keys
from expert_workers.transports.base import Failure, FailureReason, WorkerFailureError
from expert_workers.transports.fleet import URGENT, Fleet, Machine, Supply
from expert_workers.wire import Array
from expert_workers.worker.expert_worker import WorkerInfo
from moe_model.layers.dispatch import ExpertKey
from moe_model.versions.expert_versions import ExpertModule

_log = logging.getLogger(__name__)

# A part of a load that tells its parts takes so long, and has at most so many times the modules of the last.
_PART_SECONDS, _MAX_GROWTH = 1.0, 4


@dataclass(frozen=True, slots=True)
class Expected:
    """What every worker must agree on, and which client asks. None: what the worker says is right."""

    epoch: int = 0
    client: str = ""
    dtype: str | None = None
    fingerprint: str | None = None
    by_force: bool = False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that a worker is given to start, to get ready then, for a heartbeat, to load modules, and to
    fetch and load them: a worker that hangs meanwhile is known by its heart."""

    start: float = 120.0
    ready: float = 5.0
    answer: float = 10.0
    load: float = 120.0
    fetch: float = 3600.0


@dataclass(frozen=True, slots=True)
class Up:
    """A worker that can be used. `canaries` are of what it holds already."""

    info: WorkerInfo
    address: Address
    canaries: Mapping[ExpertKey, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker holds now. `failure`: why it could not load the first of those that it lacks."""

    info: WorkerInfo
    canaries: Mapping[ExpertKey, Array]
    failure: Failure | None = None


# Is told of a part of a load, on the load's thread; whether the rest is still wanted.
OnPart = Callable[[Loaded], bool]


class Connector(Protocol):
    """The client whose links lead to the workers."""

    def connect(self, address: Address, timeout: float) -> None:
        """Returns when there is a link to the address. Raises WorkerFailureError."""

    def disconnect(self, address: Address) -> None:
        """No routes will name the address, unless they have already."""


class Jobs:
    """Every method blocks, and raises WorkerFailureError."""

    def __init__(
        self,
        fleet: Fleet,
        expected: Expected,
        timeouts: Timeouts,
        links: Connector,
        on_loaded: Callable[[int], object] = lambda _count: None,
    ) -> None:
        """`on_loaded` is told of modules that have been loaded, some at a time, on the jobs' threads."""
        self._fleet = fleet
        self._links = links
        self._on_loaded = on_loaded
        self._incarnations = count(1)
        self._expected = expected
        self._timeouts = timeouts
        self._is_halted = False
        self._starting = threading.Lock()

    def bring_up(self, rank: int, known: Keys, node_id: str | None = None, *, is_back: bool = False) -> Up:
        """Starts the worker, on that machine, unless it runs, claims it, has it connected. What it holds of
        `known` it keeps.

        One that `is_back` has little time to answer: what it was asked on its old way may stay unanswered.
        """
        fleet, expected, timeouts = self._fleet, self._expected, self._timeouts
        if rank not in fleet.find():
            self._start(rank, node_id)
        info = fleet.describe(rank, timeouts.ready if is_back else timeouts.start)
        # First of all: another coordinator's workers are none of our business, whatever they are.
        fleet.claim(rank, expected.client, expected.epoch, by_force=expected.by_force, timeout=timeouts.ready)
        if node_id not in (None, info.node_id):
            # Of an earlier coordinator, which had one of this rank elsewhere.
            fleet.end([rank])
            raise WorkerFailureError(Failure(FailureReason.DIED, f"worker {rank}: ran on another machine"))
        problem = mismatch(expected, rank, info)
        if problem:
            raise WorkerFailureError(Failure(FailureReason.RAISED, problem))
        stale = [key for key in info.keys if key not in known]
        if stale:
            info = fleet.unload(rank, stale, timeouts.load)
        canaries = self.canary(rank, info.keys) if info.keys else {}
        address = Address(rank, next(self._incarnations), fleet.endpoint(rank, timeouts.ready))
        self._links.connect(address, timeouts.ready)
        return Up(info, address, canaries)

    def load(
        self,
        rank: int,
        modules: Sequence[ExpertModule],
        *,
        is_whole: bool = False,
        supply: Supply = URGENT,
        on_part: OnPart | None = None,
    ) -> Loaded:
        """All modules, or those that can be loaded; none of them if it shall be a whole, or none can be.

        `on_part` is told of each part as it is there, in the order of the modules and at first of one; False
        ends the load.
        """
        try:
            return self._load(rank, modules, supply, on_part)
        except WorkerFailureError as error:
            if is_whole or len(modules) < 2 or error.failure.reason is not FailureReason.RAISED:
                raise
        return self._load_each(rank, modules, supply, on_part)

    def drop(self, rank: int, keys: Sequence[ExpertKey]) -> WorkerInfo:
        return self._fleet.unload(rank, keys, self._timeouts.load)

    def canary(self, rank: int, keys: Sequence[ExpertKey]) -> Mapping[ExpertKey, Array]:
        return self._fleet.canary(rank, keys, self._timeouts.load)

    def beat(self, rank: int) -> WorkerInfo:
        return self._fleet.beat(rank, self._expected.client, self._timeouts.answer)

    def was_oom(self, info: WorkerInfo) -> bool:
        return self._fleet.was_oom(info)

    def check(self, *, with_machines: bool) -> tuple[Machine, ...]:
        """The machines that could run workers; none unless they are wanted. Raises ClusterError."""
        self._fleet.check()
        return self._fleet.machines() if with_machines else ()

    def fence(self, info: WorkerInfo, address: Address) -> None:
        """Kills the process that was reached there. It may have been lost before routes named it."""
        self._links.disconnect(address)
        self._fleet.fence(info)

    def halt(self, timeout: float = 5.0) -> None:
        """No worker is started from now on. What is there then is all that is to be ended, unless a start
        that was under way outlasts `timeout` seconds, as one on a cluster that hangs."""
        self._is_halted = True
        if self._starting.acquire(timeout=timeout):
            self._starting.release()
        else:
            _log.warning("a worker's start does not end: it is not waited for, and may leave a Ray actor")

    def _start(self, rank: int, node_id: str | None) -> None:
        self._refuse_when_halted(rank)  # Even while a start hangs that was under way.
        with self._starting:
            self._refuse_when_halted(rank)
            self._fleet.start(rank, node_id)

    def _refuse_when_halted(self, rank: int) -> None:
        if self._is_halted:
            raise WorkerFailureError(Failure(FailureReason.RAISED, f"worker {rank}: is not started any more"))

    def end(self, rank: int) -> None:
        self._fleet.end([rank])

    def _load(
        self, rank: int, modules: Sequence[ExpertModule], supply: Supply, on_part: OnPart | None = None
    ) -> Loaded:
        """Part by part: each has the whole time for one load, and shows when it is there."""
        left = list(modules) if on_part is not None else sorted(modules, key=_layer)
        info, untold, num = None, list[ExpertKey](), 1
        is_paced = on_part is not None or supply.is_far
        timeout = self._timeouts.fetch if supply.is_far else self._timeouts.load
        while left:
            part = left[:num] if is_paced else [m for m in left if m.layer == left[0].layer]
            left = left[len(part) :]
            started = time.monotonic()
            info = self._fleet.load(rank, part, timeout, supply)
            num = next_number(len(part), time.monotonic() - started)
            self._on_loaded(len(part))
            untold += [module.key for module in part]
            if on_part is not None and left:
                is_wanted = on_part(Loaded(info, self.canary(rank, untold)))
                untold.clear()
                if not is_wanted:
                    break
        assert info is not None, "a load is of one module at least"
        return Loaded(info, self.canary(rank, untold) if untold else {})

    def _load_each(
        self, rank: int, modules: Sequence[ExpertModule], supply: Supply, on_part: OnPart | None
    ) -> Loaded:
        """One after the other: a file that is damaged costs no other module."""
        info, canaries = None, dict[ExpertKey, Array]()
        failures: list[Failure] = []
        for module in modules:
            try:
                loaded = self._load(rank, [module], supply)
            except WorkerFailureError as error:
                if error.failure.reason is not FailureReason.RAISED:
                    raise
                failures.append(error.failure)
            else:
                info = loaded.info
                canaries.update(loaded.canaries)
                if on_part is not None and not on_part(loaded):
                    break
        if info is None:
            raise WorkerFailureError(failures[0])
        return Loaded(info, canaries, failures[0] if failures else None)


def next_number(number: int, seconds: float) -> int:
    """How many modules to load next where so many took so long: as many as are there a second later."""
    return max(1, min(_MAX_GROWTH * number, int(number * _PART_SECONDS / max(seconds, 1e-6))))


def _layer(module: ExpertModule) -> int:
    return module.layer


def mismatch(expected: Expected, rank: int, info: WorkerInfo) -> str:
    """What is wrong with a worker's description of itself; empty when nothing is."""
    if info.rank != rank:
        return f"worker {rank}: says it is worker {info.rank}"
    if expected.dtype not in (None, info.dtype):
        return f"worker {rank}: computes in {info.dtype}, expected {expected.dtype}"
    if info.keys and expected.fingerprint not in (None, info.fingerprint):
        return f"worker {rank}: has loaded another checkpoint"
    return ""
