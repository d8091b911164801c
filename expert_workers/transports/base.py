"""The seam between clients and workers: how a worker is served, how a call gets there, how its answer comes
back. A transport is one object that has both halves, and one row in table.py.

A link is the way to one process: it dies with the process, or when it is failed, and never comes back. It
raises for no failure of its worker: each call ends as its answer or as a `Failure`.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeVar

from expert_workers.tls import TlsPaths
from expert_workers.wire import ExpertCall, ExpertReply, Pong
from expert_workers.worker.expert_worker import ExpertWorker
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


class Answerer(Protocol):
    """What a transport's server asks: a worker, as far as calls go."""

    def compute(self, call: ExpertCall) -> ExpertReply:
        """Raises ExpertMeshError."""


class Pending(Protocol):
    """A call on its way; `outcome` is None until it has one. `arrived` is when, by time.perf_counter()."""

    @property
    def outcome(self) -> ExpertReply | Pong | Failure | None: ...

    @property
    def arrived(self) -> float: ...


class LentCall(NamedTuple):
    """A call whose frame, or a part of it, another has sent through a lent socket. `num_bytes` are those of
    its reply's rows, `received` is what has been read of the reply; `arrived` is when all of it was, by
    time.perf_counter(), and 0 where there is more to come."""

    call_id: int
    num_bytes: int
    unsent: bytes
    received: bytes
    arrived: float = 0.0


class FrameSocket(Protocol):
    """A link's socket. While all is quiet it may be lent: the borrower sends frames and reads replies in the
    link's place, until it gives back what is on its way."""

    def fileno(self) -> int: ...

    @property
    def is_quiet(self) -> bool:
        """Whether it works, and nothing is on its way."""

    def take_back(self, calls: Sequence[LentCall]) -> Sequence[Pending]:
        """The calls are the link's from now on, in the order in which they were sent."""


class Link(Protocol):
    """The way to one worker's process. Belongs to one thread, once it has been handed over."""

    @property
    def rank(self) -> int: ...

    @property
    def frames(self) -> FrameSocket | None:
        """Its socket, where frames travel through one as they are."""

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


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """What a transport may be told; each takes of it what it has a use for."""

    tls: TlsPaths | None = None


NO_OPTIONS = TransportOptions()


@dataclass(frozen=True, slots=True)
class Site:
    """Where a worker is served: the address to listen on, on one of the ports, what is run first in every
    thread of the transport's that computes, and what the process is called by the system that runs it, if it
    has a name. No ports: any that is free."""

    host: str = "127.0.0.1"
    prepare_thread: Callable[[], None] | None = None
    process: Hashable = None
    ports: range = range(0)


E = TypeVar("E", bound=Hashable)
E_co = TypeVar("E_co", bound=Hashable, covariant=True)


class Served(Protocol[E_co]):
    """A worker that can be reached, until it is closed."""

    @property
    def endpoint(self) -> E_co:
        """Where: plain data that can be sent to a client, and the same for as long as the process lives."""

    @property
    def num_links(self) -> int | None:
        """How many links lead here now; None where that cannot be known."""

    def close(self) -> None: ...


class Transport(Protocol[E]):
    """One way of calls and replies. It is plain data itself: the worker's process gets a copy of it."""

    @property
    def spans_processes(self) -> bool:
        """Whether a worker may be in another process than its clients."""

    @property
    def certificate_end(self) -> float | None:
        """When the first ends of the certificate that this process shows and its CA's, in seconds since 1970;
        None where it shows none."""

    def serve(self, worker: ExpertWorker, site: Site) -> Served[E]:
        """The worker's half: from now on the worker answers links. Raises OSError."""

    def connect(self, rank: int, endpoint: E, timeout: float) -> Link:
        """The client's half: a new link. Blocks for at most `timeout` seconds. Raises WorkerFailureError."""

    def plane(self) -> Plane:
        """What waits for calls of these links."""


# Of endpoints of any kind.
AnyTransport = Transport[Any]


def never() -> bool:
    """For `is_enough`: outcomes are taken as they arrive, and only all of them will do."""
    return False
