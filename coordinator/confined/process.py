"""ConfinedProcess: asks a process with limits what could hang, crash or exhaust the server.

What the process does is its module's own; this knows frames, deadlines and ends. See child.py.
"""

import contextlib
import logging
import os
import selectors
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import expertmesh
from coordinator.confined.child import OUT_OF_TIME, frame
from coordinator.confined.errors import CrashedError, OutOfTimeError
from moe_model.errors import NoProcessError

log = logging.getLogger(__name__)

START_SECONDS = 30.0
# Longer replies than any that is meant, so that a process gone mad cannot fill the server's memory.
MAX_REPLY = 64 << 20
# Where this package and the client's are, which the process cannot look up without `site`.
_ROOTS = (str(Path(__file__).resolve().parents[2]), str(Path(expertmesh.__file__).resolve().parents[1]))

Process = subprocess.Popen[bytes]


class ConfinedProcess:
    """One process, started when first needed, replaced after a question that was too much for it.

    It knows nothing of the server's environment, has none of its files and ends with its input, so with its
    owner, however that ends. Not thread-safe: its caller takes turns.
    """

    def __init__(self, module: str, first: bytes) -> None:
        """`module` is run as a program; `first` is asked before all else whenever it starts."""
        self._module = module
        self._first = first
        self._process: Process | None = None
        self._end: Callable[[], object] = _nothing

    def ask(self, question: bytes, seconds: float) -> bytes:
        """The reply. Raises OutOfTimeError, CrashedError, and NoProcessError where none can be started."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        return self._ask(self._process or self._start(), question, seconds)

    def close(self) -> None:
        """Ends the process; the next question starts another. Idempotent."""
        self._process = None
        self._end()

    def _start(self) -> Process:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                # Without `site`, which takes longer than the rest: the path is told.
                [sys.executable, "-S", "-P", "-B", "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
                # Nothing of the server's own environment, which may hold keys.
                env={"PYTHONPATH": os.pathsep.join([*_ROOTS, *filter(os.path.isabs, sys.path)])},
            )
        except OSError as error:
            raise NoProcessError(f"{self._module}: cannot start a process: {error.strerror}") from None
        self._end = weakref.finalize(self, _stop, process)
        try:
            _receive_frame(process, time.monotonic() + START_SECONDS)
        except (OSError, EOFError):
            self._end()
            raise NoProcessError(f"{self._module}: its process does not start") from None
        self._ask(process, self._first, START_SECONDS)
        log.debug("process %d runs %s", process.pid, self._module)
        self._process = process
        return process

    def _ask(self, process: Process, question: bytes, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        try:
            _send(process, question, deadline)
            return _receive_frame(process, deadline)
        except TimeoutError:
            self.close()
            raise OutOfTimeError(f"takes more than {seconds:g} s") from None
        except (OSError, EOFError):
            self.close()
            if process.returncode == -OUT_OF_TIME:
                raise OutOfTimeError("takes more time than it may") from None
            raise CrashedError("is too large or too deeply nested") from None


def _send(process: Process, payload: bytes, deadline: float) -> None:
    assert process.stdin is not None
    os.set_blocking(process.stdin.fileno(), False)
    view = memoryview(frame(payload))
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdin, selectors.EVENT_WRITE)
        while view:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            view = view[os.write(process.stdin.fileno(), view) :]


def _receive_frame(process: Process, deadline: float) -> bytes:
    (length,) = struct.unpack(">I", _receive(process, 4, deadline))
    if length > MAX_REPLY:
        raise EOFError
    return _receive(process, length, deadline)


def _receive(process: Process, count: int, deadline: float) -> bytes:
    assert process.stdout is not None
    received = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(received) < count:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), count - len(received))
            if not piece:
                raise EOFError
            received += piece
    return bytes(received)


def _nothing() -> None:
    pass


def _stop(process: Process) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
