"""Expert workers' processes on this machine: found, told from others, signalled, and looked at afterwards."""

import os
import select
import signal
import socket
import time
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from moe_model.errors import WorldError

PROC = Path("/proc")
# In the command line of Ray's process for one of our workers.
MARK = b"ExpertActor"
# A stop is asked for, and each thread obeys when it is next scheduled.
_LOOK_AGAIN = 0.001
_DEAD = "ZX"


class FaultError(WorldError):
    """A fault cannot be done, or did not happen."""


class Process:
    """One worker's process, held by a descriptor: its number cannot become another process's meanwhile."""

    def __init__(self, pid: int, rank: int, proc: Path = PROC) -> None:
        """Raises FaultError unless it is a Ray actor with experts, on this machine."""
        if pid <= 0:
            raise FaultError(f"worker {rank}: the server says of no process; it has none now, or runs no Ray")
        self.pid, self.rank = pid, rank
        self._folder = proc / str(pid)
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError:
            raise FaultError(f"worker {rank}: there is no process {pid} on this machine") from None
        try:
            is_worker = MARK in (self._folder / "cmdline").read_bytes()
        except OSError:
            is_worker = False
        if not is_worker:
            os.close(self._descriptor)
            raise FaultError(f"worker {rank}: process {pid} is not an expert worker's; it is left alone")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def signal(self, number: signal.Signals) -> bool:
        """Whether the process was still there. Raises FaultError."""
        try:
            signal.pidfd_send_signal(self._descriptor, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise FaultError(f"worker {self.rank}: process {self.pid} is another user's") from None
        return True

    def kill(self, timeout: float = 10.0) -> str:
        """SIGKILL; the proof that it has gone. Raises FaultError."""
        started = time.monotonic()
        self.signal(signal.SIGKILL)
        if not self.wait_gone(timeout):
            raise FaultError(
                f"worker {self.rank}: process {self.pid} is still there {timeout:g} s after SIGKILL"
            )
        return f"process {self.pid} gone after {time.monotonic() - started:.3f} s"

    def wait_gone(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], timeout)
        return bool(ready)

    def stop(self, timeout: float = 10.0) -> str:
        """SIGSTOP; returns the proof when every thread has stopped: one on another core goes on for some
        microseconds, enough to answer a call. Raises FaultError."""
        if not self.signal(signal.SIGSTOP):
            raise FaultError(f"worker {self.rank}: process {self.pid} has gone by itself")
        deadline = time.monotonic() + timeout
        while "T" not in (states := self.thread_states()) or set(states) - set("T" + _DEAD):
            if self.wait_gone(_LOOK_AGAIN) or time.monotonic() > deadline:
                raise FaultError(f"worker {self.rank}: process {self.pid} did not stop: {states}")
        return f"process {self.pid} stopped, {len(states)} threads in state T"

    def resume(self) -> None:
        """SIGCONT. Nothing happens where it has gone."""
        self.signal(signal.SIGCONT)

    def thread_states(self) -> str:
        """One letter for each thread, as in ps."""
        try:
            tasks = list((self._folder / "task").iterdir())
        except OSError:
            return ""
        return "".join(_state(task) for task in tasks)


def is_running(pid: int, proc: Path = PROC) -> bool:
    """Neither gone nor dead nor stopped."""
    return _state(proc / str(pid)) not in "T" + _DEAD


def _state(task: Path) -> str:
    try:
        stat = (task / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "X"
    # Behind the name, which stands in parentheses and may hold anything.
    return stat.rpartition(")")[2].split()[0]


@cache
def is_local(host: str) -> bool:
    """Whether an address is one of this machine's; the empty one of a server without Ray nodes is."""
    if host in ("", "localhost"):
        return True
    try:
        (family, kind, number, _, address), *_ = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, number) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True
