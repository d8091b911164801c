"""A worker's calls answered in C, where the worker's modules are the native kernels' and its stream is plain.

What the loop cannot answer it leaves unread, for the server in Python: whatever is wrong is answered there.
"""

import errno
import os
from enum import IntEnum

from expert_workers.worker.expert_worker import ExpertWorker
from moe_model.kernels.base import ExpertBank
from moe_model.kernels.choice import uses_native

try:
    from expert_workers.transports.stream.native import _serve
    from moe_model.kernels.native.experts import NativeBank, NativeTable
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
    """A CallLoop. Any number of threads may be in it, each with a connection. It begins empty."""

    def __init__(self) -> None:
        self._server = _serve.server()
        # The server points into their weights.
        self._tables: dict[int, NativeTable | None] = {}

    def exchange(self, layer: int, bank: ExpertBank) -> None:
        """From now on a layer's modules are the bank's, in ascending order of their slots. Waits for the call
        that is being computed; nothing else may exchange meanwhile."""
        assert isinstance(bank, NativeBank)
        table, runtime = bank.table(layer), bank.runtime
        handle, slots = (None, ()) if table is None else (table.handle, table.slots)
        _serve.exchange(self._server, layer, runtime.kernels, runtime.num_threads, handle, slots)
        self._tables[layer] = table

    def answer(self, epochs: tuple[int, ...]) -> None:
        """From now on calls of these epochs are answered. Waits for the call that is being computed."""
        _serve.answer(self._server, epochs)

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
                self._server, fd, buffer, start, end, max(1, int(1000 * tick)), max_ticks
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


def loop_of(worker: ExpertWorker) -> ServeLoop | None:
    """A new loop that answers as the worker does; None where the worker's modules are not the native
    kernels'."""
    if not HAS_LOOP or not uses_native(worker.spec.kernels, worker.spec.device):
        return None
    loop = ServeLoop()
    worker.attach(loop)
    return loop
