"""RayCallTransport: one Ray actor call per worker and dispatch. The simple transport, and the baseline.

A message travels as one `bytes` frame: Ray passes those on as they are, where a tuple with a numpy array
costs it a pickle on each side.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from expert_workers.frame import call_frame, decode_reply, encode
from expert_workers.stream_auth import Endpoint
from expert_workers.transport import Failure, FailureReason, Pending
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker import WorkerInfo
from moe_model.errors import ReplyError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Ref(Generic[T]):
    """An object on its way, or why it never started."""

    rank: int
    ref: Any
    decode: Callable[[Any], T]
    failure: Failure | None = None


class RayCallTransport:
    """A Transport over actor handles. The actors belong to whoever started them."""

    def __init__(self, actors: Mapping[int, Any]) -> None:
        self._actors = dict(actors)

    @property
    def ranks(self) -> Sequence[int]:
        return tuple(sorted(self._actors))

    def send(self, rank: int, call: ExpertCall) -> Pending[ExpertReply]:
        frame = encode(call_frame(call))
        return _start(rank, lambda: self._actors[rank].compute.remote(frame), decode_reply)

    def describe(self, rank: int) -> Pending[WorkerInfo]:
        return _start(rank, lambda: self._actors[rank].describe.remote(), _worker_info)

    def endpoint(self, rank: int) -> Pending[Endpoint]:
        """Where the worker's stream is; it listens from then on."""
        return _start(rank, lambda: self._actors[rank].endpoint.remote(), _endpoint)

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]:
        refs = cast("Sequence[_Ref[T]]", pendings)
        try:
            # One call for all is what costs least while nothing fails.
            if all(pending.failure is None for pending in refs):
                values = ray.get([pending.ref for pending in refs], timeout=_remaining(deadline))
                pairs = zip(refs, values, strict=True)
                return [_decoded(pending.rank, pending.decode, value) for pending, value in pairs]
        except RayError:
            pass
        return _gather_each(refs, deadline)

    def close(self) -> None:
        self._actors.clear()


def _gather_each(pendings: Sequence[_Ref[T]], deadline: float) -> list[T | Failure]:
    waiting = [pending.ref for pending in pendings if pending.failure is None]
    if waiting:
        ray.wait(waiting, num_returns=len(waiting), timeout=_remaining(deadline))
    return [
        _get_now(pending.rank, pending.ref, pending.decode) if pending.failure is None else pending.failure
        for pending in pendings
    ]


def _get_now(rank: int, ref: Any, decode: Callable[[Any], T]) -> T | Failure:
    try:
        return _decoded(rank, decode, ray.get(ref, timeout=0))
    except RayError as error:
        return _failure(rank, error)


def _decoded(rank: int, decode: Callable[[Any], T], value: Any) -> T | Failure:
    try:
        return decode(value)
    except ReplyError as error:
        return Failure(FailureReason.INVALID, f"worker {rank}: {error}")


def _start(rank: int, submit: Callable[[], Any], decode: Callable[[Any], T]) -> _Ref[T]:
    try:
        return _Ref(rank, submit(), decode)
    except RayError as error:
        return _Ref(rank, None, decode, _failure(rank, error))


def _failure(rank: int, error: RayError) -> Failure:
    if isinstance(error, GetTimeoutError):
        return Failure(FailureReason.LATE, f"worker {rank}: no answer in time")
    if isinstance(error, RayTaskError):
        return Failure(FailureReason.RAISED, f"worker {rank}: {first_line(error.cause)}")
    what = "its process is gone" if isinstance(error, RayActorError) else first_line(error)
    return Failure(FailureReason.DIED, f"worker {rank}: {what}")


def first_line(error: object) -> str:
    """The first line of an error's text, as Ray's go on with tracebacks and advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _worker_info(value: Any) -> WorkerInfo:
    if not isinstance(value, WorkerInfo):
        raise ReplyError(f"describe gave a {type(value).__name__}")
    return value


def _endpoint(value: Any) -> Endpoint:
    if not isinstance(value, Endpoint):
        raise ReplyError(f"endpoint gave a {type(value).__name__}")
    return value


def _remaining(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
