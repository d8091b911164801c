"""Watch: what the control service and this machine say about the workers, ten times a second."""

import bisect
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos.processes import is_local, is_running
from expertmesh import ClientError, ControlClient
from expertmesh.v1 import control_pb2 as pb
from moe_model.errors import WorldError

PERIOD = 0.1
READY = pb.ExpertWorker.STATE_READY


@dataclass(frozen=True, slots=True)
class Look:
    """The workers at one time (monotonic seconds). `whole` are the ranks of those that are ready and run;
    `copies` counts the whole holders of each (layer, expert)."""

    at: float
    pids: dict[int, int] = field(default_factory=dict)
    losses: dict[int, int] = field(default_factory=dict)
    whole: frozenset[int] = frozenset()
    copies: Counter[tuple[int, int]] = field(default_factory=Counter)

    @property
    def replicas(self) -> int:
        """Holders that every expert has; 0 if no worker holds anything."""
        return min(self.copies.values(), default=0)

    def is_restored(self, wanted: "Wanted") -> bool:
        return (
            len(self.pids) == len(self.whole) == wanted.workers
            and len(self.copies) >= wanted.experts
            and self.replicas >= wanted.replicas
        )


@dataclass(frozen=True, slots=True)
class Wanted:
    """What counts as restored. `experts` are those of all layers."""

    workers: int
    experts: int
    replicas: int


def look(workers: Sequence[pb.ExpertWorker], at: float) -> Look:
    """A worker on another machine is taken at the server's word."""
    whole = [w for w in workers if w.state == READY and (not w.pid or _runs(w))]
    return Look(
        at,
        {worker.rank: worker.pid for worker in workers},
        {worker.rank: worker.losses for worker in workers},
        frozenset(worker.rank for worker in whole),
        Counter((each.layer, expert) for w in whole for each in w.layers for expert in each.expert_ids),
    )


def _runs(worker: pb.ExpertWorker) -> bool:
    return not is_local(worker.host) or is_running(worker.pid)


class Watch:
    """A thread that looks. `close` ends it."""

    def __init__(self, control: ControlClient, first: Look, wanted: Wanted) -> None:
        self._control = control
        self._news = threading.Condition()
        self._losses = first.losses
        self._wanted = wanted
        # When all was as wanted, in order.
        self._restored: list[float] = []
        self._closed = threading.Event()
        self._num_losses = 0
        self._thread = threading.Thread(target=self._run, name="chaos-watch", daemon=True)
        self._error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    @property
    def num_losses(self) -> int:
        """How often the server has given up a worker since the start."""
        return self._num_losses

    @property
    def wanted(self) -> Wanted:
        return self._wanted

    @wanted.setter
    def wanted(self, wanted: Wanted) -> None:
        with self._news:
            self._wanted = wanted

    def restored_since(self, since: float) -> float | None:
        """When all was seen to be as wanted, for the first time at or after `since`; None: it was not."""
        with self._news:
            return self._first(since)

    def wait_restored(self, since: float, timeout: float) -> float | None:
        """The same, within `timeout` seconds from now. Raises WorldError."""
        with self._news:
            self._news.wait_for(lambda: self._error is not None or self._first(since) is not None, timeout)
            if self._error is not None:
                raise WorldError(f"the workers cannot be watched any more: {self._error!r}")
            return self._first(since)

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _first(self, since: float) -> float | None:
        index = bisect.bisect_left(self._restored, since)
        return self._restored[index] if index < len(self._restored) else None

    def _run(self) -> None:
        try:
            while not self._closed.wait(PERIOD):
                self._look()
        except BaseException as error:  # noqa: BLE001 - the top of a thread; `wait_restored` raises it
            with self._news:
                self._error = error
                self._news.notify_all()

    def _look(self) -> None:
        at = time.monotonic()
        try:
            now = look(self._control.topology(include_experts=True), at)
        except ClientError:
            # A server that is away has no whole worker.
            now = Look(at)
        with self._news:
            # A worker that has left takes its count along; a new one of that rank begins at 0 again.
            self._num_losses += sum(max(0, n - self._losses.get(rank, 0)) for rank, n in now.losses.items())
            self._losses = now.losses or self._losses
            if now.is_restored(self._wanted):
                self._restored.append(at)
            self._news.notify_all()
