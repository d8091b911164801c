"""EngineConnection: a front's connection to an engine that may die and be started again."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coordinator.engine.messages.errors import MessageError
from coordinator.engine.messages.process import Hello, StepOutputs
from coordinator.engine.process.channel import Channel
from coordinator.engine.process.frames import frame_of
from coordinator.engine.process.version import VERSION

logger = logging.getLogger(__name__)

# Seconds between two tries to connect.
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5


class EngineConnection:
    """Connects until it is closed. Made and used on one event loop.

    `channel` is there while there is an engine that has told of itself; `found` is set when there first was
    one; `why` says what is wrong.
    """

    def __init__(self, path: Path, receive: Callable[[object], None], lost: Callable[[str], None]) -> None:
        """`receive` gets what the engine says, `lost` why it says no more; then another may be found."""
        self.channel: Channel | None = None
        self.found = asyncio.Event()
        self.why = "no engine has been started"
        self._path = path
        self._on_message, self._on_loss = receive, lost
        self._opened: Channel | None = None
        self._is_greeted = False
        self._heard = time.monotonic()
        self._lost = asyncio.Event()
        self._closed = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep())

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    @property
    def silent_seconds(self) -> float:
        """Since something was heard."""
        return time.monotonic() - self._heard

    async def close(self) -> None:
        """`lost` is not called any more."""
        self._closed.set()
        self._lost.set()
        await self._keeper
        if self._opened is not None:
            self._opened.close()
        self.channel = None

    async def _keep(self) -> None:
        """Connects, and connects again, until it is closed."""
        pause = FIRST_PAUSE
        while not self.is_closed:
            self._lost.clear()
            if self._open():
                await self._lost.wait()
                pause = FIRST_PAUSE if self._is_greeted else pause
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _open(self) -> bool:
        """False when no engine listens."""
        try:
            sock = _connected(self._path)
        except OSError as error:
            self.why = f"{self._path}: {error.strerror or error}"
            return False
        self._is_greeted = False
        self._opened = Channel(sock, self._receive, self._end)
        self._opened.send(frame_of(Hello(VERSION)))
        return True

    def _receive(self, message: object) -> None:
        """Raises MessageError for what no engine of ours says."""
        self._heard = time.monotonic()
        if not self._is_greeted:
            self._greet(message)
            return
        self._on_message(message)
        if self.channel is None and isinstance(message, StepOutputs):
            # The last of what an engine tells of itself before all else.
            self.channel = self._opened
            self.found.set()

    def _greet(self, message: object) -> None:
        if not isinstance(message, Hello):
            raise MessageError(f"it says {type(message).__name__} before its version")
        if message.version != VERSION:
            raise MessageError(f"the engine is of version {message.version}, this front of {VERSION}")
        self._is_greeted = True

    def _end(self, why: str) -> None:
        if self.channel is not None or why != self.why:
            logger.error("the engine is lost: %s", why)
        self.why = why
        self._opened = self.channel = None
        self._lost.set()
        self._on_loss(why)


def _connected(path: Path) -> socket.socket:
    """Raises OSError, also where this process has too many files open."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        sock.connect(os.fspath(path))
    except OSError:
        sock.close()
        raise
    return sock
