"""A client's end of a stream: calls go out in order, replies come back in that order.

Nothing here waits longer than one tick, and sending never waits for a peer that waits for us: what a socket
does not take stays in the outbox, and replies are read in the meantime.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice

import numpy as np

from expert_workers.transports.base import Failure, FailureReason, LentCall
from expert_workers.transports.frame import (
    CALL,
    ERROR,
    HEADER,
    PING,
    PONG,
    REPLY,
    Buffer,
    Frame,
    Header,
    call_frame,
    ping_frame,
    pong_of,
    read_header,
    reply_bytes,
    reply_of,
)
from expert_workers.transports.stream.socket import aligned_buffer, end, remainder
from expert_workers.transports.stream.tls import Stream, TlsStream
from expert_workers.wire import TAKEN_OVER, ExpertCall, ExpertReply, Pong, ReplyForm
from moe_model.errors import ReplyError

_BUFFER_BYTES = 1 << 18
# Seconds that `send` gives a full socket to take more before it leaves the rest to the plane.
_SEND_PATIENCE = 0.01
# Of one write; the kernel takes 1024.
_MAX_BUFFERS = 64
_HEADER_FLOATS = HEADER.size // 4
# Of the answer to a ping: no reply has so many.
_NO_ROWS = -1


class StreamCall:
    """A Pending: a call on its way, and in the end its reply or a Failure. Or a ping, and its Pong."""

    __slots__ = ("arrived", "call_id", "connection", "num_bytes", "outcome", "rank")

    def __init__(
        self, rank: int, call_id: int, num_bytes: int, connection: "StreamConnection | None" = None
    ) -> None:
        self.rank = rank
        self.call_id = call_id
        self.num_bytes = num_bytes
        self.connection = connection
        self.outcome: ExpertReply | Pong | Failure | None = None
        self.arrived = 0.0

    def settle(self, outcome: ExpertReply | Pong | Failure) -> None:
        self.outcome = outcome
        self.arrived = time.perf_counter()


class StreamConnection:
    """A Link. Belongs to one thread. The socket has been through its handshake."""

    def __init__(self, rank: int, stream: Stream, pid: int) -> None:
        self.rank = rank
        self.pid = pid
        self.failure: Failure | None = None
        self._stream = stream
        self._tls = stream if isinstance(stream, TlsStream) else None
        self._waiting: dict[int, StreamCall] = {}
        self._outbox: deque[memoryview] = deque()
        self._buffer = aligned_buffer(_BUFFER_BYTES)
        self._floats = np.frombuffer(self._buffer, np.float32)
        self._end = 0
        # Of a body of which there is more to come: where it goes, whose it is; or how much is to be skipped.
        self._rest: memoryview | None = None
        self._rest_of: tuple[StreamCall, ExpertReply] | None = None
        self._num_skip = 0

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def has_unsent(self) -> bool:
        return bool(self._outbox)

    @property
    def is_idle(self) -> bool:
        """Whether everything that was asked has been answered."""
        return not self._waiting and not self._outbox

    @property
    def frames(self) -> "StreamConnection | None":
        """Itself; None where what travels is enciphered."""
        return self if self._tls is None else None

    @property
    def is_quiet(self) -> bool:
        """As FrameSocket: idle, and nothing is half read."""
        is_between = not self._end and self._rest is None and not self._num_skip
        return self.failure is None and self.is_idle and is_between

    def take_back(self, calls: Sequence[LentCall]) -> list[StreamCall]:
        """As FrameSocket."""
        pendings = [StreamCall(self.rank, call.call_id, call.num_bytes, self) for call in calls]
        if self.failure is not None:
            for pending in pendings:
                pending.settle(self.failure)
            return pendings
        self._waiting |= {pending.call_id: pending for pending in pendings}
        try:
            for call in calls:
                self._take_in(memoryview(call.received))
        except ReplyError as error:
            self.fail(FailureReason.INVALID, str(error))
        for call, pending in zip(calls, pendings, strict=True):
            if call.arrived and isinstance(pending.outcome, ExpertReply):
                pending.arrived = call.arrived
        if self.failure is None:
            self._outbox.extend([memoryview(call.unsent) for call in calls if call.unsent])
        return pendings

    def send(self, call: ExpertCall) -> StreamCall:
        """Starts a call; a Failure is in it at once when the stream is broken."""
        num_rows, width = call.x_RD.shape
        if call.form is not ReplyForm.SUM:
            num_rows = call.num_pairs
        pending = StreamCall(self.rank, call.call_id, 4 * num_rows * width, self)
        return self._start(pending, call_frame(call))

    def ping(self, call_id: int, epoch: int = 0) -> StreamCall:
        """Asks for a sign of life, after all that was sent before; its outcome is a Pong or a Failure.

        The ids of pings and calls on their way are all different.
        """
        return self._start(StreamCall(self.rank, call_id, _NO_ROWS, self), ping_frame(call_id, epoch))

    def _start(self, pending: StreamCall, frame: Frame) -> StreamCall:
        if self.failure is not None:
            pending.settle(self.failure)
            return pending
        self._waiting[pending.call_id] = pending
        buffers, num_bytes = frame
        num_sent = 0 if self._outbox else self._write(buffers)
        if num_sent < num_bytes and self.failure is None:
            self._outbox.extend(remainder(buffers, num_sent))
            self._push(time.monotonic() + _SEND_PATIENCE)
        return pending

    def _write(self, buffers: Sequence[Buffer]) -> int:
        """How many bytes the socket takes now."""
        try:
            return self._stream.sendmsg(buffers, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.fail(FailureReason.DIED, f"its stream broke: {error.strerror or error}")
            return 0

    def flush(self) -> None:
        """Sends what the socket takes now."""
        buffers = list(islice(self._outbox, _MAX_BUFFERS))
        left = remainder(buffers, self._write(buffers))
        if self.failure is None:
            for _ in buffers:
                self._outbox.popleft()
            self._outbox.extendleft(reversed(left))

    def _push(self, deadline: float) -> None:
        """Sends while the peer takes something at least now and then; reads what it says meanwhile."""
        poll = select.poll()
        poll.register(self._stream.fileno(), select.POLLIN | select.POLLOUT)
        while self._outbox and self.failure is None:
            ready = poll.poll(max(0.0, 1e3 * (deadline - time.monotonic())))
            if not ready:
                return
            if ready[0][1] & ~select.POLLOUT:
                self.receive(socket.MSG_DONTWAIT)
            if ready[0][1] & select.POLLOUT:
                self.flush()
                deadline = time.monotonic() + _SEND_PATIENCE

    def look(self) -> None:
        """Takes in what has come, waiting for nothing."""
        while self.failure is None and self.receive(socket.MSG_DONTWAIT):
            pass

    def receive(self, flags: int = 0) -> bool:
        """One read, and all that it completes; False when nothing has come."""
        has_come = self._receive(flags)
        if self._tls is not None:
            # What TLS has taken from the socket, no poll of it would show.
            while self.failure is None and self._tls.pending():
                self._receive(socket.MSG_DONTWAIT)
        return has_come

    def _receive(self, flags: int) -> bool:
        try:
            if self._rest is not None:
                return self._receive_rest(self._rest, flags)
            target = self._buffer[self._end :] if self._end else self._buffer
            num_read = self._stream.recv_into(target, 0, flags)
        except BlockingIOError:
            return False
        except OSError as error:
            self.fail(FailureReason.DIED, f"its stream broke: {error.strerror or error}")
            return True
        if num_read == 0:
            self.fail(FailureReason.DIED, "its stream is closed")
            return True
        self._end += num_read
        try:
            if self._end != num_read or not self._take_one(num_read):
                self._take_frames()
        except ReplyError as error:
            self.fail(FailureReason.INVALID, str(error))
        return True

    def close(self) -> None:
        """What is pending ends as DIED."""
        self.fail(FailureReason.DIED, "its stream is closed")

    def fail(self, reason: FailureReason, message: str) -> None:
        if self.failure is not None:
            return
        prefix = f"worker {self.rank}: "
        self.failure = Failure(reason, prefix + message.removeprefix(prefix))
        for pending in self._waiting.values():
            pending.settle(self.failure)
        if self._rest_of is not None:
            self._rest_of[0].settle(self.failure)
        self._waiting.clear()
        self._outbox.clear()
        end(self._stream)

    def _receive_rest(self, rest: memoryview, flags: int) -> bool:
        num_read = self._stream.recv_into(rest, 0, flags)
        if num_read == 0:
            self.fail(FailureReason.DIED, "its stream is closed")
        else:
            self._took(rest, num_read)
        return True

    def _took(self, rest: memoryview, num_read: int) -> None:
        """So much more of a body is where it goes."""
        if num_read < rest.nbytes:
            self._rest = rest[num_read:]
        else:
            assert self._rest_of is not None
            self._rest_of[0].settle(self._rest_of[1])
            self._rest = self._rest_of = None

    def _take_in(self, data: memoryview) -> None:
        """What another has read from the socket. Raises ReplyError."""
        while data:
            if self._rest is not None:
                num_read = min(self._rest.nbytes, data.nbytes)
                self._rest[:num_read] = data[:num_read]
                self._took(self._rest, num_read)
            else:
                num_read = min(len(self._buffer) - self._end, data.nbytes)
                self._buffer[self._end : self._end + num_read] = data[:num_read]
                self._end += num_read
                self._take_frames()
            data = data[num_read:]

    def _take_one(self, num_read: int) -> bool:
        """Takes what most often comes: one reply, all of it and nothing else; False when it is not that."""
        if self._num_skip or num_read < HEADER.size:
            return False
        header = read_header(self._buffer)
        call_id, num_rows, width, size = header.call_id, header.num_rows, header.width, header.body_bytes
        pending = self._waiting.get(call_id)
        if pending is None or header.kind != REPLY or num_read != HEADER.size + size:
            return False
        if size != pending.num_bytes or size != 4 * num_rows * width:
            return False
        y_ND = self._floats[_HEADER_FLOATS : _HEADER_FLOATS + num_rows * width].copy()
        del self._waiting[call_id]
        self._end = 0
        pending.settle(reply_of(header, y_ND.reshape(num_rows, width)))
        return True

    def _take_frames(self) -> None:
        start, stop = 0, self._end
        while True:
            if self._num_skip:
                skipped = min(self._num_skip, stop - start)
                self._num_skip -= skipped
                start += skipped
            if stop - start < HEADER.size:
                break
            header = read_header(self._buffer, start)
            if header.kind == ERROR and stop - start < HEADER.size + header.body_bytes:
                break
            start += HEADER.size
            start += self._take(header, start, stop)
        if start < stop:
            self._buffer[: stop - start] = self._buffer[start:stop]
        self._end = stop - start

    def _take(self, header: Header, start: int, stop: int) -> int:
        """One frame whose body, or the beginning of it, is in the buffer; returns how much of it was."""
        size = header.body_bytes
        if header.kind in (CALL, PING):
            raise ReplyError("frame: a call where a reply was expected")
        pending = self._waiting.pop(header.call_id, None)
        if pending is None:
            # Of a call that is not waited for any more.
            self._num_skip = size
            return 0
        if header.kind == ERROR:
            text = bytes(self._buffer[start : start + size]).decode(errors="replace")
            line = "".join(char if char.isprintable() else " " for char in text)
            prefix = f"worker {self.rank}: "
            reason = FailureReason.FENCED if TAKEN_OVER in line else FailureReason.RAISED
            pending.settle(Failure(reason, prefix + line.removeprefix(prefix)))
            return size
        if header.kind == PONG and pending.num_bytes == _NO_ROWS:
            pending.settle(pong_of(header))
            return size
        if header.kind != REPLY or size != pending.num_bytes or size != reply_bytes(header):
            self._waiting[header.call_id] = pending
            raise ReplyError(f"frame: a reply of {size} bytes, expected {pending.num_bytes}")
        y_ND = np.empty((header.num_rows, header.width), np.float32)
        reply = reply_of(header, y_ND)
        body, num_here = y_ND.data.cast("B"), min(size, stop - start)
        body[:num_here] = self._buffer[start : start + num_here]
        if num_here == size:
            pending.settle(reply)
        else:
            self._rest, self._rest_of = body[num_here:], (pending, reply)
        return num_here
