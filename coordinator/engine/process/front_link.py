"""FrontLink: the engine's end of its connection to one front, and what it says of the front's requests."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace

from coordinator.engine.client.receiver import Receiver
from coordinator.engine.messages.errors import MessageError, SlowConsumerError
from coordinator.engine.messages.failure import Failure
from coordinator.engine.messages.output import Output
from coordinator.engine.messages.process import StepOutputs
from coordinator.engine.messages.records import TracedStep
from coordinator.engine.messages.stats import EngineStats
from coordinator.engine.process.backlog import Backlog
from coordinator.engine.process.channel import Channel
from coordinator.engine.process.frames import frame_of

# As much of a backlog as is sent in one frame, roughly: no thread is held up for long by its encoding.
_PART_BYTES = 256 << 10
# Of a trace's number those that are its front's own; the front's number is above them.
_TRACE_BITS = 40
_TRACE_MASK = (1 << _TRACE_BITS) - 1


class Said:
    """What one step says to one front."""

    __slots__ = ("_told", "others", "tokens")

    def __init__(self) -> None:
        self.tokens: list[tuple[int, int, int]] = []
        self.others: list[tuple[int, Output]] = []
        # Requests of which `others` has something: what follows stays behind it.
        self._told: set[int] = set()

    def add(self, number: int, output: Output) -> None:
        token = output.only_token
        if token is None or number in self._told:
            self._told.add(number)
            self.others.append((number, output))
        else:
            self.tokens.append((number, output.index, token))


class FrontLink:
    """What is said is sent at once, or merged with what the front has not taken. Never waits for the front.

    `number` is this front's alone for as long as the engine lives.
    """

    channel: Channel
    receiver: Receiver

    def __init__(self, number: int, stats: Callable[[], EngineStats]) -> None:
        """`stats` are the engine's."""
        self.number = number
        # Whether the front has said who it is.
        self.is_known = False
        self._stats = stats
        self._told: EngineStats | None = None
        self._lock = threading.Lock()
        self._backlog = Backlog()
        # While a part of the backlog is encoded, what comes goes behind it.
        self._is_catching_up = False
        self._has_missed_news = False

    def say(self, said: Said) -> list[int]:
        """On any thread. Returns the requests of which too much waits already, or comes at once: no more of
        them is kept."""
        with self._lock:
            if not self._lags:
                return self._send_or_name(said)
            slow = [n for n, index, token in said.tokens if not self._backlog.put_token(n, index, token)]
            return slow + [n for n, output in said.others if not self._backlog.put(n, output)]

    def tell(self, frames: Iterable[bytes]) -> None:
        """News that are replaced by newer ones: a front that lags hears of them when it does not any more."""
        with self._lock:
            if self._lags:
                self._has_missed_news = True
                return
            for frame in frames:
                self.channel.send(frame)
            if self._stats() is not self._told:
                self._send([], [])

    def marked(self, trace: int | None) -> int | None:
        """A trace's number as the engine knows it: no other front's is the same."""
        return None if trace is None else self.number << _TRACE_BITS | trace & _TRACE_MASK

    def trace(self, step: TracedStep) -> None:
        """A step, where this front's requests are in it. A front that lags is not told, and its spans
        lack the step."""
        own = [each for each in step.step.traces if each.trace >> _TRACE_BITS == self.number]
        if not own:
            return
        traces = tuple(replace(each, trace=each.trace & _TRACE_MASK) for each in own)
        frame = frame_of(replace(step, step=replace(step.step, traces=traces)))
        with self._lock:
            if not self._lags:
                self.channel.send(frame)

    def catch_up(self) -> bool:
        """Sends what waits, when the socket has room again; on the loop. True when the front has to be told
        all news again."""
        while True:
            with self._lock:
                self._is_catching_up = False
                if self.channel.num_unsent:
                    return False
                if not self._backlog:
                    missed, self._has_missed_news = self._has_missed_news, False
                    return missed
                others, stats = self._backlog.take(_PART_BYTES), self._new_stats()
                self._is_catching_up = True
            for frame in _frames_of_backlog(others, stats):
                self.channel.send(frame)

    def _send_or_name(self, said: Said) -> list[int]:
        """Returns the requests that have said more than a frame may have."""
        try:
            self._send(said.tokens, said.others)
        except MessageError:
            # The engine goes on, and with it all other requests.
            self._told = None
            self._send(said.tokens, [])
            return [number for number, outputs in _by_request(said.others) if not self._is_sent(outputs)]
        return []

    def _is_sent(self, outputs: list[tuple[int, Output]]) -> bool:
        try:
            self._send([], outputs)
        except MessageError:
            return False
        return True

    @property
    def _lags(self) -> bool:
        return bool(self._backlog) or self._is_catching_up or self.channel.num_unsent > 0

    def _send(self, tokens: list[tuple[int, int, int]], others: list[tuple[int, Output]]) -> None:
        stats = self._new_stats()
        if tokens or others or stats is not None:
            self.channel.send(frame_of(StepOutputs(tuple(tokens), tuple(others), stats)))

    def _new_stats(self) -> EngineStats | None:
        """They go with the outputs of the step that changed them: who has read those finds them."""
        stats = self._stats()
        if stats is self._told:
            return None
        self._told = stats
        return stats


def _frames_of_backlog(others: list[tuple[int, Output]], stats: EngineStats | None) -> list[bytes]:
    """One; where that would be too long, one for each request. One of which even that is too long fails."""
    try:
        return [frame_of(StepOutputs((), tuple(others), stats))]
    except MessageError:
        requests = _by_request(others)
    if len(requests) > 1:
        return [frame for _, outputs in requests for frame in _frames_of_backlog(outputs, stats)]
    failure = Failure.of(SlowConsumerError("more output waits to be read than one message may have"))
    ends = tuple((number, Output("", failure=failure)) for number, _ in requests)
    return [frame_of(StepOutputs((), ends, stats))]


def _by_request(others: list[tuple[int, Output]]) -> list[tuple[int, list[tuple[int, Output]]]]:
    found: dict[int, list[tuple[int, Output]]] = {}
    for number, output in others:
        found.setdefault(number, []).append((number, output))
    return list(found.items())
