"""Ctrl-C and SIGTERM as exceptions, for commands that start no other process."""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, Ctrl-C is KeyboardInterrupt, also where the process would otherwise end of it at once."""
    ends = signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    if ends:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ends:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def sigterm_exits(also: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """Inside, SIGTERM raises SystemExit(143) in the main thread, which has to be the caller's; so do the
    others, with their own numbers."""
    previous = {number: signal.signal(number, _exit) for number in (signal.SIGTERM, *also)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
