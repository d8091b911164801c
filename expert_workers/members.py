"""Members: which workers are live, and the way back for lost ones. Computes nothing and routes nothing.

Asking is never waiting: a probe of a lost worker is left on its way and looked at later, so that a worker
which hangs costs the others nothing.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from expert_workers.placement import Placement
from expert_workers.transport import Failure, FailureReason, Pending, Transport
from expert_workers.worker import WorkerInfo
from moe_model.errors import WorkerStartError


class WorkerState(StrEnum):
    READY = "ready"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Expected:
    """What every worker of a pool must agree on. None: whatever the worker says."""

    dtype: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class _Loss:
    """Why a worker is lost; `quarantined` is the process that must not come back."""

    failure: Failure
    quarantined: tuple[str, int] | None


class Members:
    """The workers of a placement. All but the properties belongs to one thread."""

    def __init__(
        self,
        placement: Placement,
        transport: Transport,
        infos: Mapping[int, WorkerInfo],
        expected: Expected,
        retry_interval: float,
    ) -> None:
        self._placement = placement
        self._transport = transport
        self._expected = expected
        self._retry_interval = retry_interval
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._infos = dict(infos)
        self._losses: dict[int, _Loss] = {}
        self._num_losses = dict.fromkeys(infos, 0)
        self._probes: dict[int, Pending[WorkerInfo]] = {}
        self._probe_at: dict[int, float] = {}
        self._live = frozenset(infos)
        # Of `watch`: who has been asked, since when, and when the next round is due.
        self._checks: dict[int, Pending[WorkerInfo]] = {}
        self._checked_at = 0.0
        self._check_at = 0.0

    @property
    def live(self) -> frozenset[int]:
        return self._live

    @property
    def infos(self) -> dict[int, WorkerInfo]:
        """The last that each worker said about itself."""
        with self._lock:
            return dict(self._infos)

    def state(self, rank: int) -> WorkerState:
        return WorkerState.READY if rank in self._live else WorkerState.LOST

    def num_losses(self, rank: int) -> int:
        """How often it has been lost so far: what it was asked before the last time is void."""
        return self._num_losses[rank]

    def lose(self, rank: int, failure: Failure) -> None:
        """Takes a worker out. One whose reply was invalid only comes back as another process."""
        info = self._infos[rank]
        invalid = failure.reason is FailureReason.INVALID
        self._losses[rank] = _Loss(failure, (info.node_id, info.pid) if invalid else None)
        self._num_losses[rank] += 1
        self._live -= {rank}
        self._probe_at[rank] = time.monotonic() + self._retry_interval

    def poll(self) -> frozenset[int]:
        """Takes back the lost workers that have answered a probe, and sends the probes that are due."""
        if not self._losses:
            return frozenset()
        self._send_probes()
        return self._settle(time.monotonic())

    def revive(self, deadline: float) -> frozenset[int]:
        """Waits until a lost worker is back, or for the deadline; returns the ranks that are back."""
        while self._losses and not self._closed.is_set():
            self._send_probes()
            now = time.monotonic()
            turn = min(deadline, now + self._retry_interval)
            back = self._settle(turn)
            if back or now >= deadline:
                return back
            self._closed.wait(max(0.0, min(turn, self._next_probe()) - time.monotonic()))
        return frozenset()

    def watch(self, timeout: float) -> tuple[list[tuple[int, Failure]], frozenset[int]]:
        """Asks everybody, now and then, and looks at what has been answered since; returns those found to be
        gone, who are still to be `lose`d, and those that are back."""
        back = self.poll()
        now = time.monotonic()
        if now >= self._check_at and not self._checks:
            self._check_at = now + self._retry_interval
            self._checks = {rank: self._transport.describe(rank) for rank in sorted(self._live)}
            self._checked_at = now
        return self._gone(now, timeout), back

    def _gone(self, now: float, timeout: float) -> list[tuple[int, Failure]]:
        if not self._checks:
            return []
        checks, self._checks = self._checks, {}
        outcomes = self._transport.gather(list(checks.values()), now)
        gone = []
        for (rank, pending), outcome in zip(checks.items(), outcomes, strict=True):
            if not isinstance(outcome, Failure) or rank not in self._live:
                continue
            if outcome.reason is FailureReason.LATE and now - self._checked_at < timeout:
                self._checks[rank] = pending
            else:
                gone.append((rank, outcome))
        return gone

    def close(self) -> None:
        self._checks.clear()
        self._closed.set()
        self._probes.clear()

    def _send_probes(self) -> None:
        now = time.monotonic()
        for rank in self._losses:
            if rank not in self._probes and now >= self._probe_at[rank]:
                self._probes[rank] = self._transport.describe(rank)

    def _settle(self, deadline: float) -> frozenset[int]:
        probes = tuple(self._probes.items())
        if not probes:
            return frozenset()
        outcomes = self._transport.gather([pending for _, pending in probes], deadline)
        back = {
            rank for (rank, _), outcome in zip(probes, outcomes, strict=True) if self._answered(rank, outcome)
        }
        self._live |= back
        return frozenset(back)

    def _answered(self, rank: int, outcome: WorkerInfo | Failure) -> bool:
        if isinstance(outcome, Failure) and outcome.reason is FailureReason.LATE:
            return False
        del self._probes[rank]
        self._probe_at[rank] = time.monotonic() + self._retry_interval
        if isinstance(outcome, Failure) or mismatch(self._placement, self._expected, rank, outcome):
            return False
        if self._losses[rank].quarantined == (outcome.node_id, outcome.pid):
            return False
        with self._lock:
            self._infos[rank] = outcome
        del self._losses[rank]
        return True

    def _next_probe(self) -> float:
        waiting = [
            at for rank, at in self._probe_at.items() if rank in self._losses and rank not in self._probes
        ]
        return min(waiting, default=float("inf"))


def introduce(
    placement: Placement, transport: Transport, expected: Expected, deadline: float
) -> dict[int, WorkerInfo]:
    """Asks every worker who it is. Raises WorkerStartError unless each holds just what the placement says."""
    ranks: Sequence[int] = range(placement.num_workers)
    outcomes = transport.gather([transport.describe(rank) for rank in ranks], deadline)
    infos = {}
    for rank, outcome in zip(ranks, outcomes, strict=True):
        if isinstance(outcome, Failure):
            raise WorkerStartError(outcome.message)
        problem = mismatch(placement, expected, rank, outcome)
        if problem:
            raise WorkerStartError(problem)
        infos[rank] = outcome
    return infos


def mismatch(placement: Placement, expected: Expected, rank: int, info: WorkerInfo) -> str:
    """What is wrong with a worker's description of itself; empty when nothing is."""
    if info.rank != rank:
        return f"worker {rank}: says it is worker {info.rank}"
    if info.keys != placement.experts_of(rank):
        return f"worker {rank}: holds other experts than its placement says"
    if expected.dtype not in (None, info.dtype):
        return f"worker {rank}: computes in {info.dtype}, expected {expected.dtype}"
    if expected.fingerprint not in (None, info.fingerprint):
        return f"worker {rank}: has loaded another checkpoint"
    return ""
