"""StreamTransport: rows over a stream to each worker's process; the rest of the way to it is the control's.

One frame per call and one per reply, pipelined: replies are matched by call id. Who a worker is, it is asked
through the control; whoever is described is connected, so a worker counts as back only once its stream is.
"""

import select
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Protocol, TypeVar, cast

from expert_workers.stream_auth import Endpoint
from expert_workers.stream_connect import Connector
from expert_workers.stream_connection import StreamCall, StreamConnection
from expert_workers.stream_socket import TICK
from expert_workers.transport import Failure, FailureReason, Pending
from expert_workers.wire import ExpertCall, ExpertReply
from expert_workers.worker import WorkerInfo

T = TypeVar("T")


class Control(Protocol):
    """The slow way to the workers, by which they are found and described."""

    @property
    def ranks(self) -> Sequence[int]: ...

    def describe(self, rank: int) -> Pending[WorkerInfo]: ...

    def endpoint(self, rank: int) -> Pending[Endpoint]: ...

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]: ...

    def close(self) -> None: ...


class _Probe:
    """A Pending: a worker that is asked who it is and, unless it is connected, where it listens."""

    def __init__(self, rank: int, info: Pending[WorkerInfo], endpoint: Pending[Endpoint] | None) -> None:
        self.rank = rank
        self.asked: list[Pending[WorkerInfo | Endpoint]] = [info] if endpoint is None else [info, endpoint]
        self.info: WorkerInfo | None = None
        self.connector: Connector | None = None
        self.outcome: WorkerInfo | Failure | None = None


class StreamTransport:
    """A Transport. Belongs to one thread."""

    def __init__(self, control: Control, tls: ssl.SSLContext | None = None, use_unix: bool = True) -> None:
        self._control = control
        self._tls = tls
        self._use_unix = use_unix
        self._connections: dict[int, StreamConnection] = {}
        self._connectors: dict[int, Connector] = {}

    @property
    def ranks(self) -> Sequence[int]:
        return self._control.ranks

    def send(self, rank: int, call: ExpertCall) -> Pending[ExpertReply]:
        connection = self._connections.get(rank)
        if connection is not None:
            return connection.send(call)
        pending = StreamCall(rank, call.call_id, 0)
        pending.outcome = Failure(FailureReason.DIED, f"worker {rank}: has no stream")
        return pending

    def describe(self, rank: int) -> Pending[WorkerInfo]:
        connection = self._connections.get(rank)
        # One with calls that were never answered is behind; a new one begins anew.
        is_usable = connection is not None and connection.failure is None and connection.is_idle
        endpoint = None if is_usable else self._control.endpoint(rank)
        return _Probe(rank, self._control.describe(rank), endpoint)

    def gather(self, pendings: Sequence[Pending[T]], deadline: float) -> list[T | Failure]:
        probes = [p for p in pendings if isinstance(p, _Probe)]
        if len(probes) < len(pendings):
            _wait([pending for pending in pendings if isinstance(pending, StreamCall)], deadline)
        if probes:
            self._settle([probe for probe in probes if probe.outcome is None], deadline)
        known = cast("Sequence[StreamCall | _Probe]", pendings)
        outcomes = [pending.outcome or _late(pending.rank) for pending in known]
        return cast("list[T | Failure]", outcomes)

    def close(self) -> None:
        for connector in self._connectors.values():
            connector.cancel()
        for connection in self._connections.values():
            connection.close()
        self._connectors.clear()
        self._connections.clear()
        self._control.close()

    def _settle(self, probes: Sequence[_Probe], deadline: float) -> None:
        asked = [probe for probe in probes if probe.info is None]
        outcomes = iter(self._control.gather([one for probe in asked for one in probe.asked], deadline))
        for probe in asked:
            self._answered(probe, [next(outcomes) for _ in probe.asked])
        for probe in probes:
            if probe.connector is not None and probe.outcome is None:
                self._connected(probe, probe.connector.wait(deadline))

    def _answered(self, probe: _Probe, outcomes: Sequence[WorkerInfo | Endpoint | Failure]) -> None:
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        fatal = [failure for failure in failures if failure.reason is not FailureReason.LATE]
        if fatal:
            probe.outcome = fatal[0]
        if failures:
            return
        probe.info = cast("WorkerInfo", outcomes[0])
        if len(outcomes) == 1:
            probe.outcome = self._still_there(probe.rank, probe.info)
        else:
            self._start(probe, cast("Endpoint", outcomes[1]))

    def _still_there(self, rank: int, info: WorkerInfo) -> WorkerInfo | Failure:
        connection = self._connections[rank]
        while connection.failure is None and connection.receive(socket.MSG_DONTWAIT):
            pass
        if connection.failure is None and connection.pid == info.pid:
            return info
        return connection.failure or Failure(FailureReason.DIED, f"worker {rank}: is another process now")

    def _start(self, probe: _Probe, endpoint: Endpoint) -> None:
        earlier = self._connectors.pop(probe.rank, None)
        if earlier is not None:
            earlier.cancel()
        probe.connector = Connector(probe.rank, endpoint, self._tls, self._use_unix)
        self._connectors[probe.rank] = probe.connector

    def _connected(self, probe: _Probe, result: StreamConnection | Failure | None) -> None:
        if result is None:
            return
        if self._connectors.get(probe.rank) is probe.connector:
            del self._connectors[probe.rank]
        if isinstance(result, Failure):
            probe.outcome = result
            return
        old = self._connections.pop(probe.rank, None)
        if old is not None:
            old.close()
        self._connections[probe.rank] = result
        probe.outcome = probe.info


def _wait(calls: Sequence[StreamCall], deadline: float) -> None:
    """Until each call has its outcome, or the deadline. Blocks in reads as long as nothing is special."""
    for call in calls:
        if call.connection is not None and call.connection.has_unsent:
            _poll(calls, deadline)
            return
    for call in calls:
        connection = call.connection
        while call.outcome is None:
            assert connection is not None, "a call without one has an outcome"
            if deadline - time.monotonic() < TICK or not connection.receive():
                _poll(calls, deadline)
                return


def _poll(calls: Sequence[StreamCall], deadline: float) -> None:
    """The same for whatever may happen: unsent calls, workers that do not answer, a deadline that is past."""
    while True:
        waiting = {call.connection for call in calls if call.outcome is None}
        if not waiting:
            return
        poll = select.poll()
        by_fd = {connection.fileno(): connection for connection in waiting if connection is not None}
        for fd, connection in by_fd.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if connection.has_unsent else 0))
        ready = poll.poll(max(0.0, 1e3 * (deadline - time.monotonic())))
        if not ready:
            return
        for fd, events in ready:
            if events & ~select.POLLOUT:
                by_fd[fd].receive(socket.MSG_DONTWAIT)
            if events & select.POLLOUT and by_fd[fd].failure is None:
                by_fd[fd].flush()


def _late(rank: int) -> Failure:
    return Failure(FailureReason.LATE, f"worker {rank}: no answer in time")
