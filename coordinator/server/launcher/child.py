"""Child: one process of the server as its launcher has it: what they say to each other, and how it ended."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from coordinator.server.launcher.deaths import why_it_ended
from coordinator.server.launcher.messages import ControlError, Message, decode, encode
from moe_model.machine import num_oom_kills

logger = logging.getLogger(__name__)

_STDERR = 2
# Of one line; the longest is a configuration.
_MAX_LINE = 4 << 20
# What a process that has crashed has to say.
_MAX_LAST_WORDS = 16 << 10

Hear = Callable[[Message], None]


class Child:
    """Made with `start`, on the event loop that is told. Nothing here waits for the process but `ended`."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter, last_words: int
    ) -> None:
        self.name = name
        self._process = process
        self._writer = writer
        self._last_words = last_words
        self._oom_kills = num_oom_kills()
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, name: str, module: str, folder: Path, environment: Mapping[str, str], hear: Hear, *arguments: str
    ) -> "Child":
        """`module` is run with our interpreter; its arguments are the descriptors of the control channel and
        of a file for its last words, the server's folder, and `arguments`. `hear` gets what it says."""
        ours, its = socket.socketpair()
        last_words = os.memfd_create(name)
        try:
            with its:
                # It hears no stop signal, as its mask is ours; nothing it starts has the channel.
                process = await asyncio.create_subprocess_exec(
                    *command(module, str(its.fileno()), str(last_words), str(folder), *arguments),
                    stdin=subprocess.DEVNULL,
                    # READY is all that is on standard output, and the launcher's to say.
                    stdout=_STDERR,
                    pass_fds=(its.fileno(), last_words),
                    env=environment,
                )
            reader, writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE)
        except BaseException:
            ours.close()
            os.close(last_words)
            raise
        child = cls(name, process, writer, last_words)
        child._reading = asyncio.ensure_future(child._read(reader, hear))
        return child

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Message) -> None:
        """Never waits. What one that is gone is told is lost."""
        with suppress(RuntimeError, OSError):
            self._writer.write(encode(message))

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def ended(self) -> str | None:
        """Waits for its end, and until all is heard that it said; why it ended, None: in order."""
        code = await self._process.wait()
        assert self._reading is not None
        await self._reading
        try:
            words = os.pread(self._last_words, _MAX_LAST_WORDS, 0).decode(errors="replace")
        finally:
            os.close(self._last_words)
        self._writer.close()
        return why_it_ended(code, words, num_oom_kills() - self._oom_kills) if code else None

    async def _read(self, reader: asyncio.StreamReader, hear: Hear) -> None:
        """Until it closes the channel, at the latest with its end."""
        try:
            while line := await reader.readline():
                hear(decode(line))
        except ConnectionError:
            # It has ended, with something unread.
            return
        except (ControlError, ValueError) as error:
            logger.error("the %s (pid %d) says what is not understood: %s", self.name, self.pid, error)
            self.kill()


def command(module: str, *arguments: str) -> Sequence[str]:
    """Runs a module of ours, whatever folder the user stands in."""
    return [sys.executable, "-P", "-m", module, *arguments]
