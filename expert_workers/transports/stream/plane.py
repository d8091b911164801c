"""StreamPlane: waits for the calls of streams. One frame per call and one per reply, matched by call id."""

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

from expert_workers.transports.base import Pending, never
from expert_workers.transports.stream.connection import StreamCall, StreamConnection
from expert_workers.transports.stream.socket import TICK


class StreamPlane:
    """A Plane. Holds nothing: the connections have everything."""

    def wait(
        self, pendings: Sequence[Pending], deadline: float, is_enough: Callable[[], bool] | None = None
    ) -> None:
        # What has no outcome is a stream's: a local link's calls have theirs at once.
        calls = cast("list[StreamCall]", [pending for pending in pendings if pending.outcome is None])
        if is_enough is None:
            _wait(calls, deadline)
        else:
            _poll(calls, deadline, is_enough)


def _wait(calls: Sequence[StreamCall], deadline: float) -> None:
    """Until each call has its outcome, or the deadline. Blocks in the read of a single one as long as nothing
    is special. Of several each is read when it comes: in turn, a quick worker's answer would seem to take as
    long as that of a slow one before it."""
    if len(calls) > 1 or any(call.connection is not None and call.connection.has_unsent for call in calls):
        _poll(calls, deadline, never)
        return
    for call in calls:
        connection = call.connection
        while call.outcome is None:
            assert connection is not None, "a call without one has an outcome"
            if deadline - time.monotonic() < TICK or not connection.receive():
                _poll(calls, deadline, never)
                return


def _poll(calls: Sequence[StreamCall], deadline: float, is_enough: Callable[[], bool]) -> None:
    """The same in the order of arrival, for whatever may happen: unsent calls, workers that do not answer, a
    deadline that is past."""
    poll = select.poll()
    by_fd = {
        call.connection.fileno(): call.connection
        for call in calls
        if call.outcome is None and call.connection is not None
    }
    for fd, connection in by_fd.items():
        poll.register(fd, _events(connection))
    while waiting := {call.connection for call in calls if call.outcome is None}:
        ready = poll.poll(max(0.0, 1e3 * (deadline - time.monotonic())))
        if not ready:
            return
        for fd, events in ready:
            connection = by_fd[fd]
            if events & ~select.POLLOUT and connection in waiting:
                connection.receive(socket.MSG_DONTWAIT)
            if events & select.POLLOUT and connection.failure is None:
                connection.flush()
        if is_enough():
            return
        still = {call.connection for call in calls if call.outcome is None}
        for fd, _ in ready:
            if by_fd[fd] in still:
                poll.modify(fd, _events(by_fd[fd]))
            else:
                poll.unregister(fd)


def _events(connection: StreamConnection) -> int:
    return select.POLLIN | (select.POLLOUT if connection.has_unsent else 0)
