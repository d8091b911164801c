"""Faults of one worker's process on this machine, for as long as a block runs."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from chaos.cgroups import Cgroup, group_name, limit_cpu
from chaos.processes import FaultError, Process
from scaling.cell import Fault

# Of SIGSTOP and SIGCONT in turns, where there are no control groups.
_DUTY_PERIOD = 0.02
_END_TIMEOUT = 10.0


def worker_fault(fault: Fault, pid: int) -> AbstractContextManager[None]:
    """`kill`, `pause` or `slow` is in force when the block begins; a pause and a slow worker are over when it
    ends, whatever else happened to the worker meanwhile. Raises RuntimeError, a line, on entering: where the
    process is not an expert worker's on this machine, or it could not be done."""
    return _KINDS[fault.kind](fault, pid)


@contextmanager
def _held(fault: Fault, pid: int) -> Iterator[Process]:
    """By a descriptor, so that the number does not become another process's."""
    try:
        with Process(pid, fault.worker) as process:
            yield process
    except FaultError as error:
        raise RuntimeError(str(error)) from None


@contextmanager
def _killed(fault: Fault, pid: int) -> Iterator[None]:
    with _held(fault, pid) as process:
        process.kill()
    yield


@contextmanager
def _paused(fault: Fault, pid: int) -> Iterator[None]:
    with _held(fault, pid) as process, ExitStack() as undo:
        undo.callback(process.resume)
        process.stop()
        yield


@contextmanager
def _slowed(fault: Fault, pid: int) -> Iterator[None]:
    with _held(fault, pid) as process, ExitStack() as undo:
        try:
            group = Cgroup("cpu", group_name(fault.worker))
        except FaultError:
            undo.enter_context(_stopped_in_turns(process, fault.share))
        else:
            undo.callback(group.close)
            limit_cpu(group, fault.share * len(os.sched_getaffinity(pid)))
            group.take(pid)
        yield


@contextmanager
def _stopped_in_turns(process: Process, share: float) -> Iterator[None]:
    is_over = threading.Event()

    def run() -> None:
        while not process.wait_gone(0) and not is_over.is_set():
            process.signal(signal.SIGSTOP)
            is_over.wait(_DUTY_PERIOD * (1 - share))
            process.resume()
            is_over.wait(_DUTY_PERIOD * share)

    thread = threading.Thread(target=run, name="slow worker")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(_END_TIMEOUT)
        process.resume()


def _cut(fault: Fault, pid: int) -> AbstractContextManager[None]:
    raise RuntimeError("cut: only hosts in namespaces have a cable that can be cut")


_KINDS: dict[str, Callable[[Fault, int], AbstractContextManager[None]]] = {
    "kill": _killed,
    "pause": _paused,
    "slow": _slowed,
    "cut": _cut,
}
