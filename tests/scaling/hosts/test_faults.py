"""Faults of a worker's process: in force while the block runs, and over after it."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.process_tree import cpu_seconds
from chaos.cgroups import Cgroup
from chaos.processes import FaultError, is_running
from scaling.cell import Fault, FaultKind
from scaling.hosts.faults import worker_fault
from tests.chaos_engine.victims import victim


@pytest.fixture
def pid() -> Iterator[int]:
    with victim() as process:
        yield process.pid


def share_of(pid: int, seconds: float) -> float:
    """Of a core, so long."""
    began, before = time.monotonic(), cpu_seconds([pid])
    while time.monotonic() < began + seconds:
        os.sched_yield()
    return (cpu_seconds([pid]) - before) / (time.monotonic() - began)


def test_a_worker_that_is_killed_is_gone_when_the_block_begins(pid: int) -> None:
    with worker_fault(Fault("kill"), pid):
        assert not is_running(pid)


def test_a_worker_that_is_paused_goes_on_after_it(pid: int) -> None:
    with worker_fault(Fault("pause"), pid):
        assert not is_running(pid)
    assert is_running(pid)


def test_a_worker_that_died_in_its_pause_is_no_error(pid: int) -> None:
    with worker_fault(Fault("pause"), pid):
        os.kill(pid, 9)


# On busy cores the thread that stops it comes late.
@pytest.mark.chaos
def test_a_worker_is_slowed_without_groups_by_signals(pid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> Cgroup:
        raise FaultError("no groups")

    monkeypatch.setattr("scaling.hosts.faults.Cgroup", refused)
    with worker_fault(Fault("slow", share=0.2), pid):
        assert share_of(pid, 0.6) < 0.4
    assert is_running(pid)


@pytest.mark.chaos
def test_a_worker_is_slowed_by_a_quota_of_its_cores(pid: int, capable: None) -> None:
    os.sched_setaffinity(pid, {min(os.sched_getaffinity(0))})
    with worker_fault(Fault("slow", share=0.25), pid):
        assert share_of(pid, 0.6) < 0.35
        assert "expertmesh-chaos" in Path(f"/proc/{pid}/cgroup").read_text()
    assert "expertmesh-chaos" not in Path(f"/proc/{pid}/cgroup").read_text()


@pytest.mark.parametrize("kind", ["kill", "pause", "slow"])
def test_what_is_no_worker_is_left_alone(kind: FaultKind) -> None:
    with victim(name="other") as process:
        with (
            pytest.raises(RuntimeError, match="not an expert worker's"),
            worker_fault(Fault(kind), process.pid),
        ):
            raise AssertionError("it began")
        assert is_running(process.pid)


def test_a_cable_is_no_processs(pid: int) -> None:
    with pytest.raises(RuntimeError, match="cut: only hosts in namespaces"):
        worker_fault(Fault("cut"), pid)
