"""Faults: each breaks a worker, waits until it is broken, and returns the proof. Closing undoes them."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from chaos.cgroups import Cgroup, group_name, limit_cpu, limit_memory, num_oom_kills, num_throttled
from chaos.events import Cont, Kill, Oom, Slow, Stall, Stop, WorkerEvent
from chaos.processes import FaultError, Process

# Of SIGSTOP and SIGCONT in turns.
DUTY_PERIOD = 0.1

Wait = Callable[[float], None]


class Faults:
    """Done to processes; `close` undoes what still lasts."""

    def __init__(self, wait: Wait) -> None:
        """`wait` passes seconds, and raises where there is no use in going on."""
        self._wait = wait
        self._lasting = ExitStack()

    def do(self, event: WorkerEvent, pid: int, rank: int) -> str:
        """Returns when the fault has been there: at once for those that last. FaultError if it was not."""
        if isinstance(event, Stop):
            process = self._lasting.enter_context(Process(pid, rank))
            self._lasting.callback(process.resume)
            return process.stop()
        with Process(pid, rank) as process:
            return self._done(event, process)

    def close(self) -> None:
        self._lasting.close()

    def _done(self, event: WorkerEvent, process: Process) -> str:
        match event:
            case Kill():
                return process.kill()
            case Cont():
                process.resume()
                return f"process {process.pid} continued"
            case Stall():
                return self._stall(event, process)
            case Slow():
                return self._slow(event, process)
            case Oom():
                return _oom(event, process)
        raise FaultError(f"{event.do}: is nothing that can be done to a worker")

    def _stall(self, event: Stall, process: Process) -> str:
        """A worker that was given up and killed meanwhile has had its last stall."""
        done = 0
        with ExitStack() as undo:
            undo.callback(process.resume)
            for number in range(event.times):
                if not self._stopped(process, done):
                    break
                done += 1
                self._wait(event.seconds)
                process.resume()
                if number + 1 < event.times:
                    self._wait(event.pause)
        gone = " and it was killed" if process.wait_gone(0) else ""
        return f"process {process.pid} stopped {done} times for {event.seconds:g} s{gone}"

    def _stopped(self, process: Process, before: int) -> bool:
        """False for one that was stopped before and is gone now: the server ended it. Raises FaultError."""
        try:
            process.stop()
        except FaultError:
            if before and process.wait_gone(0):
                return False
            raise
        return True

    def _slow(self, event: Slow, process: Process) -> str:
        if event.by != "signals":
            try:
                return self._slow_by_quota(event, process)
            except FaultError:
                if event.by == "cgroup":
                    raise
        return self._slow_by_signals(event, process)

    def _slow_by_quota(self, event: Slow, process: Process) -> str:
        with ExitStack() as undo:
            group = Cgroup("cpu", group_name(process.rank))
            undo.callback(group.close)
            limit_cpu(group, event.share)
            group.take(process.pid)
            self._wait(event.seconds)
            count = num_throttled(group)
        if not count:
            raise FaultError(
                f"worker {process.rank}: needs less than {event.share:g} of a core: never throttled"
            )
        return f"process {process.pid} throttled {count} times"

    def _slow_by_signals(self, event: Slow, process: Process) -> str:
        count, end = 0, time.monotonic() + event.seconds
        with ExitStack() as undo:
            undo.callback(process.resume)
            while time.monotonic() < end and self._stopped(process, count):
                count += 1
                self._wait(DUTY_PERIOD * (1 - event.share))
                process.resume()
                self._wait(DUTY_PERIOD * event.share)
        return f"process {process.pid} stopped {count} times for {DUTY_PERIOD * (1 - event.share):.3f} s"


def _oom(event: Oom, process: Process) -> str:
    with ExitStack() as undo:
        group = Cgroup("memory", group_name(process.rank))
        undo.callback(group.close)
        limit_memory(group)
        group.take(process.pid)
        gone = process.wait_gone(event.timeout)
        count = num_oom_kills(group)
    if not gone or not count:
        raise FaultError(f"worker {process.rank}: took no memory within {event.timeout:g} s: not killed")
    return f"process {process.pid} killed by the kernel, oom_kill {count}"
