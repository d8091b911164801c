"""Tries grammars out in a process of its own, so that none can hang or crash the server.

The library cannot be stopped while it builds, and deep recursion ends its process. Knows no kinds.
"""

import contextlib
import json
import logging
import os
import selectors
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence

from coordinator.structured.errors import ConstraintError, ProbeError
from coordinator.structured.probe_main import frame

log = logging.getLogger(__name__)

MODULE = "coordinator.structured.probe_main"
START_SECONDS = 30.0

Process = subprocess.Popen[bytes]


class Probe:
    """One helper process, started when first needed, replaced when a grammar was too much for it.

    Not thread-safe: its caller takes turns.
    """

    def __init__(self, tokens: Sequence[bytes], seconds: float = 2.0) -> None:
        self._vocabulary = json.dumps([token.decode("latin-1") for token in tokens]).encode()
        self._seconds = seconds
        self._process: Process | None = None
        self._end: Callable[[], object] = _nothing

    def check(self, grammar: str) -> None:
        """Raises ConstraintError for a grammar that does not build in time, ProbeError without a process."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        process = self._process or self._start()
        try:
            refusal = _ask(process, grammar.encode(), self._seconds)
        except TimeoutError:
            self.close()
            raise ConstraintError(f"takes more than {self._seconds:g} s to compile") from None
        except (OSError, EOFError):
            self.close()
            raise ConstraintError("is too large or too deeply nested to compile") from None
        if refusal:
            raise ConstraintError(refusal)

    def close(self) -> None:
        """Ends the process; the next check starts another. Idempotent."""
        self._process = None
        self._end()

    def _start(self) -> Process:
        try:
            process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no shell
                [sys.executable, "-P", "-m", MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise ProbeError(f"structured output: cannot start a process: {error.strerror}") from None
        self._end = weakref.finalize(self, _stop, process)
        try:
            _ask(process, self._vocabulary, START_SECONDS)
        except (OSError, EOFError):
            self._end()
            raise ProbeError("structured output: its process does not start") from None
        log.debug("structured output: process %d tries grammars", process.pid)
        self._process = process
        return process


def _ask(process: Process, payload: bytes, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    _send(process, payload, deadline)
    (length,) = struct.unpack(">I", _receive(process, 4, deadline))
    return _receive(process, length, deadline).decode()


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


def _receive(process: Process, count: int, deadline: float) -> bytes:
    assert process.stdout is not None
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(received) < count:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), count - len(received))
            if not piece:
                raise EOFError
            received += piece
    return received


def _nothing() -> None:
    pass


def _stop(process: Process) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    process.wait()
