"""The seam between the pool and its workers: how a call gets there and how its answer comes back.

A link is the way to one process: it dies with the process, or when it is failed, and never comes back. It
raises for no failure of its worker: each call ends as its answer or as a `Failure`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from expert_workers.wire import ExpertCall, ExpertReply, Pong
from moe_model.errors import WorldError


class FailureReason(StrEnum):
    """Why a worker gave no usable answer."""

    LATE = "late"
    DIED = "died"
    RAISED = "raised"
    INVALID = "invalid"
    CORRUPT = "corrupt"
    OOM = "oom"
    FENCED = "fenced"


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that ended without an answer. The message is one line and names the worker."""

    reason: FailureReason
    message: str


class WorkerFailureError(WorldError):
    """The same, raised where a worker is asked and waited for."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Pending(Protocol):
    """A call on its way; `outcome` is None until it has one. `arrived` is when, by time.perf_counter()."""

    @property
    def outcome(self) -> ExpertReply | Pong | Failure | None: ...

    @property
    def arrived(self) -> float: ...


class Link(Protocol):
    """The way to one worker's process. Belongs to one thread, once it has been handed over."""

    @property
    def rank(self) -> int: ...

    @property
    def failure(self) -> Failure | None:
        """Why nothing goes this way any more."""

    def send(self, call: ExpertCall) -> Pending:
        """Starts a call; returns at once."""

    def look(self) -> None:
        """Takes in what has come, waiting for nothing."""

    def fail(self, reason: FailureReason, message: str) -> None:
        """Ends it; what is pending ends with this failure. The first failure stays."""

    def close(self) -> None: ...


class Plane(Protocol):
    """Waits for calls of several links of one kind."""

    def wait(
        self, pendings: Sequence[Pending], deadline: float, is_enough: Callable[[], bool] | None = None
    ) -> None:
        """Until each has its outcome, or `is_enough`, which is asked after every arrival, or `deadline`
        (time.monotonic()). Calls of local links are there already."""


def never() -> bool:
    """For `is_enough`: outcomes are taken as they arrive, and only all of them will do."""
    return False
