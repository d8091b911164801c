"""A worker's calls answered in C, where the worker's experts are the native kernels' and its stream is plain.

What the loop cannot answer it leaves unread, for the server in Python: whatever is wrong is answered there.
"""

import errno
import os
from enum import IntEnum
from typing import Self

from moe_model.kernels.base import ExpertBank

try:
    from expert_workers.native import _serve
    from moe_model.native.parts import NativeBank
except ImportError:
    # Installed without a C compiler.
    HAS_LOOP = False
else:
    HAS_LOOP = True


class _Status(IntEnum):
    """Why the loop came back; as in src/serve.c."""

    FRAME = 0
    TICK = 1
    END = 2
    ERROR = 3
    STALLED = 4


class ServeLoop:
    """Of one worker; any number of threads may be in it, each with a connection."""

    def __init__(self, server: object, bank: ExpertBank, num_threads: int) -> None:
        self._server = server
        # The server points into its weights.
        self._bank = bank
        self._num_threads = num_threads

    @classmethod
    def over(cls, bank: ExpertBank, n_layers: int, n_experts: int) -> Self | None:
        """None where there is no such loop for this bank."""
        if not HAS_LOOP or not isinstance(bank, NativeBank):
            return None
        runtime, tables = bank.handles
        layers = tuple(tables.get(layer) for layer in range(n_layers))
        return cls(_serve.server(runtime.kernels, n_experts, layers), bank, runtime.num_threads)

    @property
    def num_pairs(self) -> int:
        """(row, expert) pairs that were computed in it."""
        return _serve.num_pairs(self._server)

    def run(
        self, fd: int, buffer: memoryview, start: int, end: int, *, tick: float, stall_timeout: float
    ) -> tuple[bool, int, int]:
        """Answers calls until one comes that is Python's, or the peer closes; what is unread is then between
        `start` and `end`. Returns whether there is more, start and end. Raises OSError.

        `tick` is the socket's own timeout, in seconds.
        """
        max_ticks = max(1, int(stall_timeout / tick))
        stalled = 0
        while True:
            before = end - start
            status, start, end, code = _serve.serve(
                self._server, fd, buffer, start, end, self._num_threads, max_ticks
            )
            match _Status(status):
                case _Status.FRAME:
                    return True, start, end
                case _Status.END if start == end:
                    return False, start, end
                case _Status.END:
                    raise ConnectionResetError("closed in the middle of a frame")
                case _Status.ERROR:
                    raise OSError(code or errno.EIO, os.strerror(code or errno.EIO))
                case _Status.STALLED:
                    raise TimeoutError("does not read its answers")
            stalled = stalled + 1 if end - start == before and start != end else 0
            if stalled >= max_ticks:
                raise TimeoutError("stopped in the middle of a frame")
