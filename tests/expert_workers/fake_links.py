"""Links to real workers in memory which misbehave when told to, the plane that waits for them, and a rescuer.

Late answers are really late: a wait for them waits, and ends when they are due or told to come.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

from expert_workers.dispatch.pool import ExpertPool
from expert_workers.dispatch.routes import Address, Routes
from expert_workers.transports.base import Failure, FailureReason, Link, Pending, Plane, Served, Site
from expert_workers.transports.in_process.links import LocalLink
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.layers.dispatch import ExpertKey

Outcome = ExpertReply | Failure


class Fault(NamedTuple):
    """What becomes of one call: another answer, or the same one so many seconds later."""

    change: Callable[[ExpertCall, ExpertReply], Outcome]
    seconds: float = 0.0


def fails(reason: FailureReason) -> Fault:
    return Fault(lambda call, reply: Failure(reason, f"told to be {reason}"))


def changes(**fields: Any) -> Fault:
    return Fault(lambda call, reply: reply._replace(**fields))


def after(seconds: float) -> Fault:
    return Fault(lambda call, reply: reply, seconds)


def silent() -> Fault:
    """Never answered, unless the link is told to."""
    return after(math.inf)


class FakePending:
    def __init__(self, link: "FakeLink", call: ExpertCall, answer: Outcome, due: float) -> None:
        self.link = link
        self.call = call
        self.answer = answer
        self.due = due
        self.outcome: Outcome | None = None
        self.arrived = 0.0

    def settle(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.arrived = time.perf_counter()


class FakePlane:
    """A Plane that waits for the answers of its links, and keeps the deadlines that it was given."""

    def __init__(self) -> None:
        self.arrival = threading.Condition()
        self.deadlines: list[float] = []

    def wait(
        self, pendings: Sequence[Pending], deadline: float, is_enough: Callable[[], bool] | None = None
    ) -> None:
        self.deadlines.append(deadline)
        fakes = cast("list[FakePending]", list(pendings))
        num_open = sum(each.outcome is None for each in fakes)
        with self.arrival:
            while num_open:
                for link in {each.link for each in fakes}:
                    link.look()
                num_before, num_open = num_open, sum(each.outcome is None for each in fakes)
                if num_open < num_before and is_enough is not None and is_enough():
                    return
                now = time.monotonic()
                if num_open and now >= deadline:
                    return
                if num_open:
                    due = min(each.due for each in fakes if each.outcome is None)
                    self.arrival.wait(max(0.0, min(deadline, due) - now))


class FakeLink:
    """A Link. Each call uses up its next fault; where there is none, `usual` is what happens."""

    frames = None

    def __init__(self, rank: int, worker: ExpertWorker, plane: FakePlane) -> None:
        self.rank = rank
        self.worker = worker
        self.failure: Failure | None = None
        self.faults: deque[Fault] = deque()
        self.usual: Fault | None = None
        self.calls: list[ExpertCall] = []
        self._inner = LocalLink(rank, worker)
        self._plane = plane
        self._waiting: list[FakePending] = []

    def send(self, call: ExpertCall) -> FakePending:
        self.calls.append(call)
        answer, seconds = self._inner.send(call).outcome, 0.0
        if isinstance(answer, ExpertReply):
            fault = self.faults.popleft() if self.faults else self.usual
            if fault is not None:
                answer, seconds = fault.change(call, answer), fault.seconds
        pending = FakePending(self, call, answer, time.monotonic() + seconds)
        if self.failure is not None:
            pending.settle(self.failure)
        elif seconds:
            self._waiting.append(pending)
        else:
            pending.settle(answer)
        return pending

    def answer(self) -> None:
        """What has not been answered yet is, now. Any thread."""
        with self._plane.arrival:
            for pending in self._waiting:
                pending.due = 0.0
            self._plane.arrival.notify_all()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def look(self) -> None:
        now = time.monotonic()
        for pending in [each for each in self._waiting if each.due <= now]:
            self._waiting.remove(pending)
            pending.settle(pending.answer)

    def fail(self, reason: FailureReason, message: str) -> None:
        if self.failure is None:
            self.failure = Failure(reason, message)
            for pending in self._waiting:
                pending.settle(self.failure)
            self._waiting.clear()

    def close(self) -> None:
        self.fail(FailureReason.DIED, f"worker {self.rank}: is closed")


@dataclass(frozen=True)
class GivenLinks:
    """A Transport whose endpoints are links that are there already."""

    waits: Plane
    spans_processes: ClassVar[bool] = False
    certificate_end: ClassVar[float | None] = None

    def serve(self, worker: ExpertWorker, site: Site) -> Served[Any]:
        raise NotImplementedError("its links are made elsewhere")

    def connect(self, rank: int, endpoint: Any, timeout: float) -> Link:
        link: Link = endpoint
        return link

    def plane(self) -> Plane:
        return self.waits


def routes_over(
    pool: ExpertPool, version: int, links: Mapping[int, Link], holders: Mapping[ExpertKey, tuple[int, ...]]
) -> Routes:
    """Routes over these links, of which a pool of GivenLinks knows then."""
    addresses = {rank: Address(rank, 0, cast("Hashable", link)) for rank, link in links.items()}
    for address in addresses.values():
        pool.connect(address, 0.0)
    return Routes(version, addresses, holders)


class FakeRescuer:
    """A Rescuer that notes what it is told, and does what it is told to do about it."""

    def __init__(self) -> None:
        self.losses: list[tuple[Address, Failure]] = []
        self.rescues: list[tuple[ExpertKey, ...]] = []
        self.on_rescue: Callable[[], None] | None = None

    def lost(self, address: Address, failure: Failure) -> None:
        self.losses.append((address, failure))

    @property
    def reasons(self) -> list[tuple[int, FailureReason]]:
        return [(address.rank, failure.reason) for address, failure in self.losses]

    def rescue(self, keys: Sequence[ExpertKey]) -> None:
        self.rescues.append(tuple(keys))
        if self.on_rescue is not None:
            self.on_rescue()
