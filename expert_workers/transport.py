"""The seam between the pool and its workers: how a call gets there and how its answer comes back.

A transport starts no process and keeps no placement. It never raises for a worker's failure: each pending
call ends as its answer or as a `Failure`, and `gather` returns at the deadline whatever the workers do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker import WorkerInfo

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class FailureReason(StrEnum):
    """Why a worker gave no usable answer."""

    LATE = "late"
    DIED = "died"
    RAISED = "raised"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Failure:
    """A pending call that ended without an answer. The message is one line and names the worker."""

    reason: FailureReason
    message: str


class Pending(Protocol[T_co]):
    """A request on its way; only the transport that made it can look inside."""

    @property
    def rank(self) -> int: ...


class Transport(Protocol):
    """A way to reach the workers of one pool."""

    @property
    def ranks(self) -> Sequence[int]: ...

    def send(self, rank: int, call: ExpertCall) -> Pending[ExpertReply]:
        """Starts a call; returns at once."""

    def describe(self, rank: int) -> Pending[WorkerInfo]:
        """Asks a worker who it is and what it holds; returns at once."""

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]:
        """Waits once for all, until `deadline` (time.monotonic()). A past deadline takes what is there.

        A call that is late may be gathered again; one that nobody gathers again is dropped.
        """

    def close(self) -> None:
        """Drops what is pending. Idempotent; the workers stay."""
