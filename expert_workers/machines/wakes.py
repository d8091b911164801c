"""Wakes: signals as something to wait for beside descriptors: the first ends, the second hurries. Light."""

import os
import select
import signal
from types import TracebackType
from typing import Self

from moe_model.halt import Halt


class Wakes:
    """Told of signals on any thread, waited for on one. A context manager."""

    def __init__(self) -> None:
        self.halt = Halt()
        self.hurry = Halt()
        # Readable once the first signal has come, the second one.
        self._first = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._second = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def hear(self, number: signal.Signals) -> None:
        if self.halt.is_set:
            self.hurry.set()
            os.eventfd_write(self._second, 1)
        else:
            self.halt.set()
            os.eventfd_write(self._first, 1)

    def wait(self, poll: "select.poll", timeout: float | None = None) -> list[int]:
        """Descriptors that are ready; none after `timeout` seconds. Raises HaltedError after a signal."""
        return self._wait(poll, self._first, self.halt, timeout)

    def wait_hurried(self, poll: "select.poll", timeout: float | None = None) -> list[int]:
        """The same after the second signal only."""
        return self._wait(poll, self._second, self.hurry, timeout)

    def pause(self, seconds: float) -> None:
        """Raises HaltedError after a signal."""
        self.wait(select.poll(), seconds)

    def _wait(self, poll: "select.poll", event: int, halt: Halt, timeout: float | None) -> list[int]:
        poll.register(event, select.POLLIN)
        ready = [each for each, _ in poll.poll(None if timeout is None else timeout * 1000)]
        halt.check()
        return ready

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._first)
        os.close(self._second)
