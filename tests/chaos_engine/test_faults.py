"""Faults on real processes: each leaves a proof, none is left behind, and no other process is touched."""

import os
import subprocess
import sys
import threading

import pytest

from chaos import events
from chaos.events import WorkerEvent
from chaos.faults import Faults
from chaos.processes import FaultError, Process, is_local, is_running
from tests.chaos_engine.victims import victim


class Clock:
    """A wait that only counts."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


def pause(seconds: float) -> None:
    """Real time, for a kernel that must do something meanwhile."""
    threading.Event().wait(seconds)


def broken(event: WorkerEvent, pid: int) -> str:
    faults = Faults(pause)
    try:
        return faults.do(event, pid, 1)
    finally:
        faults.close()


def test_kill() -> None:
    with victim() as process:
        assert f"process {process.pid} gone after" in broken(events.Kill(), process.pid)
        assert process.wait() == -9


def test_a_stop_lasts_until_the_faults_are_closed() -> None:
    faults = Faults(pause)
    with victim() as process:
        proof = faults.do(events.Stop(), process.pid, 1)
        assert proof == f"process {process.pid} stopped, 2 threads in state T"
        assert not is_running(process.pid)
        faults.close()
        assert is_running(process.pid)


def test_a_stop_ends_with_cont() -> None:
    faults = Faults(pause)
    with victim() as process:
        faults.do(events.Stop(), process.pid, 1)
        assert "continued" in faults.do(events.Cont(), process.pid, 1)
        assert is_running(process.pid)
        faults.close()


def test_a_stall_is_so_many_stops() -> None:
    clock = Clock()
    with victim() as process:
        proof = Faults(clock.wait).do(events.Stall(seconds=0.5, times=3, pause=0.2), process.pid, 1)
        assert proof == f"process {process.pid} stopped 3 times for 0.5 s"
        assert clock.waits == [0.5, 0.2, 0.5, 0.2, 0.5]
        assert is_running(process.pid)


def test_a_stall_that_the_server_ends() -> None:
    with victim() as process:

        def wait(seconds: float) -> None:
            process.kill()
            process.wait()

        proof = Faults(wait).do(events.Stall(times=9), process.pid, 1)
        assert proof == f"process {process.pid} stopped 1 times for 0.5 s and it was killed"


@pytest.mark.parametrize("event", [events.Stall(), events.Slow(by="signals"), events.Stop()])
def test_ctrl_c_undoes_the_fault(event: WorkerEvent) -> None:
    def wait(seconds: float) -> None:
        raise KeyboardInterrupt

    faults = Faults(wait)
    with victim() as process:
        if isinstance(event, events.Stop):
            faults.do(event, process.pid, 1)
        else:
            with pytest.raises(KeyboardInterrupt):
                faults.do(event, process.pid, 1)
        faults.close()
        assert is_running(process.pid)


def test_slow_by_signals_takes_turns() -> None:
    with victim() as process:
        proof = broken(events.Slow(share=0.5, seconds=0.3, by="signals"), process.pid)
        assert f"process {process.pid} stopped" in proof
        assert is_running(process.pid)


def test_a_process_that_is_no_worker_is_left_alone() -> None:
    with victim(name="somebody") as process:
        with pytest.raises(FaultError, match=r"worker 1: process \d+ is not an expert worker's"):
            broken(events.Kill(), process.pid)
        assert process.poll() is None


def test_a_process_that_there_is_not() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    with pytest.raises(FaultError, match=r"worker 1: there is no process \d+"):
        broken(events.Kill(), done.pid)


def test_a_server_that_says_of_no_process() -> None:
    with pytest.raises(FaultError, match="worker 1: the server says of no process"):
        broken(events.Kill(), 0)


def test_another_users_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    with victim() as process:
        monkeypatch.setattr("signal.pidfd_send_signal", refuse)
        with pytest.raises(FaultError, match=r"process \d+ is another user's"):
            broken(events.Kill(), process.pid)


def test_a_worker_that_has_gone_cannot_be_stopped() -> None:
    with victim() as process:
        worker = Process(process.pid, 1)
        worker.kill()
        process.wait()
        with worker, pytest.raises(FaultError, match="has gone by itself"):
            worker.stop()


def test_no_descriptor_is_left() -> None:
    with victim() as process:
        before = len(os.listdir("/proc/self/fd"))
        for event in (events.Stall(seconds=0.01), events.Cont(), events.Stop(), events.Kill()):
            broken(event, process.pid)
        assert len(os.listdir("/proc/self/fd")) == before


def test_addresses_of_this_machine() -> None:
    assert is_local("127.0.0.1")
    assert is_local("")
    # For documentation: nobody has it.
    assert not is_local("192.0.2.1")
    assert not is_local("no such host")


def test_who_runs() -> None:
    assert is_running(os.getpid())
    with victim() as process:
        process.kill()
        # Not waited for: a zombie.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_running(process.pid)
    assert not is_running(process.pid)
