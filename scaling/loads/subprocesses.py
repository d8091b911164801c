"""Processes that send loads: each has a deadline, and none outlives the block that it belongs to."""

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from expert_workers.processes import kill_and_wait, members

# How long a process that was asked to end may take.
PATIENCE = 10.0


class Deadline:
    """So many seconds from when it was made."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def wait(self, process: "subprocess.Popen[bytes]") -> None:
        """Until it has ended. Raises RuntimeError when the time is over."""
        try:
            process.wait(self.left)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the load had not ended after {self.seconds:.0f} s") from error


@contextmanager
def ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """It has ended when the block has: by itself, asked to, or killed; where it leads a group, so have all of
    that, also where it ended by itself and left some of them."""
    leads = os.getpgid(process.pid) == process.pid
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, number) if leads else process.send_signal(number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
        if leads:
            kill_and_wait(members(process.pid), PATIENCE)
        if process.stdout is not None:
            process.stdout.close()


def first_line(process: "subprocess.Popen[bytes]", deadline: Deadline) -> str:
    """Of its output; empty where it ended without one. Raises RuntimeError when the time is over."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(deadline.left):
            raise RuntimeError(f"the load had not begun after {deadline.seconds:.0f} s")
    line = process.stdout.readline().decode(errors="replace")
    if not line:
        deadline.wait(process)
    return line
