"""Single keys from the terminal, for a command that waits and shows meanwhile."""

import os
import select
import termios
import time
import tty
from types import TracebackType
from typing import Any, Self, TextIO


class Keyboard:
    """A context manager: while it lasts keys come at once and are not shown; none come without a terminal."""

    def __init__(self, stream: TextIO | None) -> None:
        self._fd = _terminal(stream)
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        if self._fd is not None:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd is not None and self._before is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def wait(self, seconds: float, keys: str) -> bool:
        """Whether one of the keys was pressed within that time."""
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            heard = select.select([] if self._fd is None else [self._fd], [], [], remaining)[0]
            if not heard or self._fd is None:
                continue
            pressed = os.read(self._fd, 64)
            if not pressed:
                # The terminal is gone: it would say so again at once.
                self._fd = None
            if any(key.encode() in pressed for key in keys):
                return True
        return False


def _terminal(stream: TextIO | None) -> int | None:
    """None where it is no terminal, or another command's at the moment."""
    try:
        if stream is None or not stream.isatty():
            return None
        fd = stream.fileno()
        return fd if os.tcgetpgrp(fd) == os.getpgrp() else None
    except (OSError, ValueError):
        return None
