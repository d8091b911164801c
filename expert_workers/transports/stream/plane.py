"""StreamPlane: waits for the calls of streams. One frame per call and one per reply, matched by call id."""

import select
import socket
import time
from collections.abc import Callable, Sequence
from typing import cast

from expert_workers.transports.base import Pending, never
from expert_workers.transports.stream.connection import StreamCall
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
    """Until each call has its outcome, or the deadline. Blocks in reads as long as nothing is special."""
    for call in calls:
        if call.connection is not None and call.connection.has_unsent:
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
        if is_enough():
            return
