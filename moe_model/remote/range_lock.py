"""Ranges of a file, locked among all threads and processes of a machine; the kernel frees a dead one's."""

import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from moe_model.halt import Halt

# The kernel tells no waiter with a deadline: locks are asked for so often.
_LOOK_SECONDS = 0.02
# struct flock: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


@contextmanager
def locked_range(descriptor: int, begin: int, size: int, seconds: float, halt: Halt) -> Iterator[bool]:
    """Whether it was got within `seconds`: a holder that hangs must not hang others, so they go on without.

    The descriptor is one that no other thread has: locks belong to what was opened. Raises HaltedError.
    """
    got = _acquire(descriptor, begin, size, time.monotonic() + seconds, halt)
    try:
        yield got
    finally:
        if got:
            _set(descriptor, fcntl.F_UNLCK, begin, size)


def _acquire(descriptor: int, begin: int, size: int, until: float, halt: Halt) -> bool:
    pause = threading.Event()
    while True:
        try:
            _set(descriptor, fcntl.F_WRLCK, begin, size)
        except BlockingIOError:
            halt.check()
            if time.monotonic() > until:
                return False
            pause.wait(_LOOK_SECONDS)
        except OSError:
            # A file system without locks: a block may be fetched twice.
            return False
        else:
            return True


def _set(descriptor: int, kind: int, begin: int, size: int) -> None:
    flock = struct.pack(_FLOCK, kind, os.SEEK_SET, begin, size, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, flock)
