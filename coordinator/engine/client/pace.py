"""Pace: when the readers of streams are told of more tokens: at once, or a little later of several.

To tell a reader of one token costs what it costs to tell of several, and an engine that computes on all cores
waits for each of them. So what it costs decides how often it is done.
"""

import asyncio
import time
from collections.abc import Callable

# Of the time of the loop's thread, at most, while tokens come faster than they can be told of within it.
SHARE = 0.05
# Seconds that a token waits at most, however much there is to do.
LONGEST_WAIT = 0.04


class Pace:
    """Lives on one event loop, of whose thread all work between two tellings counts."""

    def __init__(
        self,
        tell: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
        used: Callable[[], float] = time.thread_time,
    ) -> None:
        """`used` are the seconds of a processor that the thread has had so far."""
        self._tell = tell
        self._loop = loop
        self._used = used
        self._told_at, self._used_then = loop.time(), used()
        self._timer: asyncio.TimerHandle | None = None

    def due(self) -> None:
        """There is something to tell, not for the first time perhaps."""
        if self._timer is not None:
            return
        now = self._loop.time()
        at = self._told_at + (self._used() - self._used_then) / SHARE
        if at <= now:
            self._tell_now()
        else:
            self._timer = self._loop.call_at(min(at, now + LONGEST_WAIT), self._tell_now)

    def close(self) -> None:
        """Nothing is told any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell_now(self) -> None:
        self._timer = None
        self._told_at, self._used_then = self._loop.time(), self._used()
        self._tell()
