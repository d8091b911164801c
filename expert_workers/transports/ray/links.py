"""RayLink and RayPlane: one Ray actor call per worker and dispatch. The simple way, and the baseline.

A message travels as one `bytes` frame: Ray passes those on as they are, where a tuple with a numpy array
costs it a pickle on each side.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from expert_workers.cluster.ray_errors import first_line
from expert_workers.transports.base import Failure, FailureReason, Pending
from expert_workers.transports.frame import call_frame, decode_reply, encode
from expert_workers.wire import ExpertCall, ExpertReply
from moe_model.errors import FencedError, ReplyError


@dataclass(frozen=True, slots=True)
class ActorName:
    """Where a worker is, as Ray knows it."""

    name: str
    namespace: str


class RayCall:
    """A Pending."""

    __slots__ = ("_outcome", "arrived", "link", "ref")

    def __init__(self, link: "RayLink", ref: Any) -> None:
        self.link = link
        self.ref = ref
        self.arrived = 0.0
        self._outcome: ExpertReply | Failure | None = None

    @property
    def outcome(self) -> ExpertReply | Failure | None:
        return self._outcome or self.link.failure

    def settle(self, outcome: ExpertReply | Failure) -> None:
        self._outcome = outcome
        self.arrived = time.perf_counter()
        self.link.settled(self)


class RayLink:
    """A Link: an actor's handle, for one process of the actor's. The actor belongs to its fleet."""

    frames = None

    def __init__(self, rank: int, actor: Any) -> None:
        self.rank = rank
        self.failure: Failure | None = None
        self._actor = actor
        self._open: dict[Any, RayCall] = {}

    def send(self, call: ExpertCall) -> RayCall:
        if self.failure is not None:
            return RayCall(self, None)
        try:
            pending = RayCall(self, self._actor.compute.remote(encode(call_frame(call))))
            self._open[pending.ref] = pending
            return pending
        except RayError as error:
            pending = RayCall(self, None)
            pending.settle(failure_of(self.rank, error))
            return pending

    def look(self) -> None:
        """Takes in what has come, waiting for nothing: Ray tells nothing that it is not asked."""
        if self._open:
            ready, _ = ray.wait(list(self._open), num_returns=len(self._open), timeout=0)
            for ref in ready:
                _settle(self._open[ref])

    def settled(self, pending: RayCall) -> None:
        """Ray is not asked for it any more."""
        self._open.pop(pending.ref, None)

    def fail(self, reason: FailureReason, message: str) -> None:
        if self.failure is None:
            self.failure = Failure(reason, message)
            self._open.clear()

    def close(self) -> None:
        self.fail(FailureReason.DIED, f"worker {self.rank}: is closed")


class RayPlane:
    """A Plane."""

    def wait(
        self, pendings: Sequence[Pending], deadline: float, is_enough: Callable[[], bool] | None = None
    ) -> None:
        calls = cast("list[RayCall]", [pending for pending in pendings if pending.outcome is None])
        if is_enough is None and _all_at_once(calls, deadline):
            return
        left = {call.ref: call for call in calls if call.outcome is None}
        while left:
            timeout = max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(left), num_returns=1, timeout=timeout)
            if not ready:
                return
            for ref in ready:
                _settle(left.pop(ref))
            if is_enough is not None and is_enough():
                return


def _all_at_once(calls: Sequence[RayCall], deadline: float) -> bool:
    """One call for all is what costs least while nothing fails."""
    try:
        values = ray.get([call.ref for call in calls], timeout=max(0.0, deadline - time.monotonic()))
    except RayError:
        return False
    for call, value in zip(calls, values, strict=True):
        call.settle(_decoded(call.link.rank, value))
    return True


def _settle(call: RayCall) -> None:
    try:
        call.settle(_decoded(call.link.rank, ray.get(call.ref, timeout=0)))
    except RayError as error:
        call.settle(failure_of(call.link.rank, error))


def _decoded(rank: int, value: Any) -> ExpertReply | Failure:
    try:
        return decode_reply(value)
    except ReplyError as error:
        return Failure(FailureReason.INVALID, f"worker {rank}: {error}")


def failure_of(rank: int, error: RayError) -> Failure:
    """What Ray's exception means for the worker."""
    if isinstance(error, GetTimeoutError):
        return Failure(FailureReason.LATE, f"worker {rank}: no answer in time")
    if isinstance(error, RayTaskError):
        is_fenced = isinstance(error.cause, FencedError)
        reason = FailureReason.FENCED if is_fenced else FailureReason.RAISED
        prefix = f"worker {rank}: "
        return Failure(reason, prefix + first_line(error.cause).removeprefix(prefix))
    if not isinstance(error, RayActorError):
        return Failure(FailureReason.DIED, f"worker {rank}: {first_line(error)}")
    # Ray's own watch over a node's memory says so in the text only.
    is_oom = "memory" in str(error).lower() and "oom" in str(error).lower()
    reason = FailureReason.OOM if is_oom else FailureReason.DIED
    return Failure(reason, f"worker {rank}: its process is gone")
