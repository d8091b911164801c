"""What each process of a server has of its launcher: it is told things, and says things.

A process ends when the launcher says so, and also when there is no launcher any more, however that ended.
"""

import asyncio
import contextlib
import faulthandler
import io
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

from coordinator.api.shared import logging_setup
from coordinator.config.observability import ObservabilityConfig
from coordinator.server.launcher import messages
from coordinator.server.launcher.messages import (
    Begin,
    Begun,
    Drain,
    Failed,
    Message,
    Phase,
    Progress,
    Stop,
    decode,
    encode,
)
from moe_model.errors import ExpertMeshError, HaltedError
from moe_model.halt import Halt

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Without a launcher: seconds after which the kernel ends a process, whatever hangs in it.
ORPHAN_SECONDS = 15
_MAX_LINE = 4 << 20
_CLEAR_LINE = "\r\x1b[K"


class Control:
    """On the event loop of the process; `tell` and `phases` may be called from any thread.

    `halt`: a start or a change shall end. `stopped`: all shall end.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.halt = Halt()
        self.stopped = asyncio.Event()
        self.phases = _Phases(self.tell)
        self.is_orphan = False
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._reader = reader
        self._writer = writer
        self._firsts: dict[type[Any], asyncio.Future[Any]] = {}
        self._listeners: dict[type[Any], Callable[[Any], object]] = {}
        self._last: dict[type[Any], Any] = {}

    def tell(self, message: Message) -> None:
        """Never waits. What comes after the end is lost."""
        if threading.get_ident() == self._thread:
            self._writer.write(encode(message))
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._writer.write, encode(message))

    async def first(self, kind: type[M]) -> M:
        """The first message of its kind, when it is there. Raises HaltedError when the process shall end
        before."""
        future = self._first(kind)
        stopped = asyncio.ensure_future(self.stopped.wait())
        try:
            await asyncio.wait([future, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if not future.done():
            raise HaltedError("it is being stopped")
        result: M = future.result()
        return result

    def listen(self, kind: type[M], listener: Callable[[M], object]) -> None:
        """`listener` gets every message of a kind from now on, on the event loop; at once the last one that
        came before, for several may come in one piece."""
        self._listeners[kind] = listener
        last = self._last.get(kind)
        if last is not None:
            listener(last)

    async def hear(self) -> None:
        """Hears the launcher until it has gone."""
        try:
            while line := await self._reader.readline():
                self._heard(decode(line))
        except ConnectionError:
            # It ended with something unread.
            pass
        except (messages.ControlError, ValueError):
            logger.exception("the launcher says what is not understood")
        self.is_orphan = not self.stopped.is_set()
        if self.is_orphan:
            logger.error("the launcher is gone: this process ends")
        signal.alarm(ORPHAN_SECONDS)
        self._heard(Stop())

    async def close(self) -> None:
        """All that was told is on its way."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _heard(self, message: Message) -> None:
        if isinstance(message, messages.Halt | Drain | Stop):
            self.halt.set()
        if isinstance(message, Stop):
            self.stopped.set()
        self._last[type(message)] = message
        first = self._first(type(message))
        if not first.done():
            first.set_result(message)
        listener = self._listeners.get(type(message))
        if listener is not None:
            listener(message)

    def _first(self, kind: type[Any]) -> "asyncio.Future[Any]":
        return self._firsts.setdefault(kind, self._loop.create_future())


class _Phases:
    """Phases that the launcher tells."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell

    def __call__(self, phase: str) -> None:
        self._tell(Phase(phase))

    def progress(self, done: int, total: int) -> None:
        self._tell(Progress(done, total))

    def done(self) -> None:
        """The launcher's to say."""


Role = Callable[[Control, Begin], Awaitable[None]]


def run(role: Role) -> int:
    """Is the process: does what `role` does until that ends; the exit code. Its arguments are those that
    Child gives it."""
    # Before there are threads: a stop is the launcher's to hear, also one for the whole group.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    control, last_words, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    for descriptor in (control, last_words):
        os.set_inheritable(descriptor, False)
    faulthandler.enable(last_words)
    code, error = asyncio.run(_run(role, socket.socket(fileno=control), folder))
    if error:
        os.write(last_words, error.encode(errors="replace"))
    logging.shutdown()
    return code


async def _run(role: Role, channel: socket.socket, folder: Path) -> tuple[int, str]:
    """The exit code, and the last words of what was not foreseen."""
    reader, writer = await asyncio.open_connection(sock=channel, limit=_MAX_LINE)
    control = Control(reader, writer)
    hearing = asyncio.ensure_future(control.hear())
    try:
        begin = await control.first(Begin)
        configure_log(begin.config.observability)
        control.tell(Begun())
        await role(control, begin)
    except HaltedError:
        return 0, ""
    except BaseException as error:
        said = shown(error)
        if said is None:
            logger.exception("the process ends")
            return 1, f"{type(error).__name__}: {error}"
        control.tell(Failed(said))
        return 1, said
    finally:
        hearing.cancel()
        await control.close()
        if control.is_orphan:
            # The launcher would have; the last process to end finds what the others still had.
            shutil.rmtree(folder, ignore_errors=True)
    return 0, ""


def shown(error: BaseException) -> str | None:
    """What an error is to the user; None for one that was not foreseen."""
    if isinstance(error, ExpertMeshError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    # torch has no type of its own for memory that a CPU does not have.
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    ):
        return "not enough memory"
    return None


def configure_log(config: ObservabilityConfig) -> None:
    """On standard error, which all processes of a server share."""
    stream = _OverLivingLine(sys.stderr) if sys.stderr.isatty() else sys.stderr
    logging_setup.configure(stream, config.log_format, config.log_level)


class _OverLivingLine(io.StringIO):
    """For the log, whose lines are written whole, on a terminal where the launcher draws a living line: it
    comes again below."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(_CLEAR_LINE + text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()
