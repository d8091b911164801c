"""Cells on hosts in namespaces: real Ray nodes, real servers, and what is on which host."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.processes import is_running
from expertmesh import Client, ControlClient
from scaling.cell import Cell, Fault, Host, Load
from scaling.hosts.groups import roots
from scaling.hosts.left_over import sweep
from scaling.hosts.ray_hosts import wait_until
from scaling.hosts.topology import NamespaceTopology, RunningHosts
from scaling.link import Link
from tests.integration.processes import DEMO_CHECKPOINT, wait_gone

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900), pytest.mark.usefixtures("capable")]

UNEVEN = (Host(cores=0.4, memory_mb=2000), Host(cores=0.8, memory_mb=3000, link=Link(delay_ms=2)))


def cell(**changed: object) -> Cell:
    fields = {"workers": 2, "replicas": 2, "hosts": UNEVEN, **changed}
    return Cell("demo", Load(concurrency=1), where="namespaces", **fields)  # type: ignore[arg-type]


def names_of_ours() -> list[str]:
    places = (Path("/run/netns"), Path("/sys/class/net"), *roots())
    return [path.name for place in places for path in place.glob(f"emx{os.getpid()}-*")]


@pytest.fixture(scope="module")
def topology(capable: None) -> Iterator[NamespaceTopology]:
    with NamespaceTopology() as topology:
        yield topology
    assert names_of_ours() == []


@pytest.fixture(scope="module")
def running(topology: NamespaceTopology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHosts]:
    log = tmp_path_factory.mktemp("topology") / "log"
    with topology.start(cell(), DEMO_CHECKPOINT, ["--replicas=2"], log) as running:
        yield running


def generated(running: RunningHosts) -> str:
    with Client(running.grpc_address) as client:
        return client.generate("def main():", max_tokens=12, temperature=0).text


def worker_pid(running: RunningHosts, number: int) -> int:
    """As the server knows it, by the address of the host."""
    with ControlClient(running.control_address) as control:
        (pid,) = [w.pid for w in control.topology() if w.host == running.machines[f"w{number}"]]
    return pid


def group_of(pid: int, controller: str) -> Path:
    for root in roots():
        for group in root.glob("emx*-*"):
            if str(pid) in (group / "cgroup.procs").read_text().split() and controller in root.name:
                return group
    raise AssertionError(f"{pid} is in no group")


def test_each_host_has_a_worker(running: RunningHosts) -> None:
    assert sorted(running.ranks()) == ["w0", "w1"]
    assert sorted(running.ranks().values()) == [0, 1]
    pids = running.pids()
    assert {role: len(found) for role, found in pids.items() if role != "ray"} == {
        "coordinator": 1,
        "engine": 1,
        "front": 1,
        "workers": 2,
    }
    assert set(pids["workers"]) == {worker_pid(running, 0), worker_pid(running, 1)}
    assert len(pids["ray"]) >= 6
    assert generated(running)


def test_hosts_have_their_caps(running: RunningHosts) -> None:
    for number, cores in enumerate((0.4, 0.8)):
        name = group_of(worker_pid(running, number), "").name
        assert name.endswith(f"-w{number}")
        (quota,) = {
            int((root / name / "cpu.cfs_quota_us").read_text())
            / int((root / name / "cpu.cfs_period_us").read_text())
            for root in roots()
            if (root / name / "cpu.cfs_quota_us").exists()
        } or {cores}
        assert quota == pytest.approx(cores)


def test_a_worker_that_is_killed_comes_back_on_its_host(running: RunningHosts) -> None:
    text, before = generated(running), worker_pid(running, 1)
    with running.inject(Fault("kill", worker=1)):
        assert not is_running(before)
        assert generated(running) == text
    wait_until(lambda: worker_pid_now(running, 1) not in (0, before), 90.0, "no new process on w1")


def worker_pid_now(running: RunningHosts, number: int) -> int:
    with ControlClient(running.control_address) as control:
        found = [w.pid for w in control.topology() if w.host == running.machines[f"w{number}"]]
    return found[0] if found else 0


@pytest.mark.parametrize("kind", ["pause", "slow", "cut"])
def test_tokens_stay_the_same_under_faults(running: RunningHosts, kind: str) -> None:
    text = generated(running)
    fault = Fault(kind, worker=0, share=0.2)  # type: ignore[arg-type]
    with running.inject(fault):
        assert generated(running) == text
    assert generated(running) == text


def test_there_is_no_such_worker(running: RunningHosts) -> None:
    with pytest.raises(RuntimeError, match="there is no host w7"):
        running.inject(Fault("kill", worker=7))


def test_hosts_are_kept_for_the_next_cell(tmp_path: Path, capable: None) -> None:
    first = cell(workers=1, replicas=1, hosts=())
    with NamespaceTopology() as topology:
        for changed in ({}, {"link": Link(gbit=0.1, delay_ms=1.0)}, {"hosts": (Host(cores=0.5),)}):
            each = cell(**{"workers": 1, "replicas": 1, "hosts": (), **changed})
            with topology.start(each, DEMO_CHECKPOINT, [], tmp_path / "log") as running:
                assert generated(running)
        assert topology.num_clusters == 1
        with (
            pytest.raises(RuntimeError, match=r"did not start(.|\n)*no-such-checkpoint"),
            topology.start(first, tmp_path / "no-such-checkpoint", [], tmp_path / "log"),
        ):
            raise AssertionError("it started")
        with topology.start(
            cell(workers=0, hosts=(), replicas=1), DEMO_CHECKPOINT, [], tmp_path / "log"
        ) as running:
            assert generated(running)
            assert running.ranks() == {}
        assert topology.num_clusters == 2


KILLED = """
import sys
from pathlib import Path
from scaling.cell import Cell, Load
from scaling.hosts.topology import NamespaceTopology
cell = Cell("demo", Load(concurrency=1), workers=1, where="namespaces")
checkpoint, log = map(Path, sys.argv[1:])
with NamespaceTopology() as topology, topology.start(cell, checkpoint, [], log) as running:
    print(*[pid for pids in running.pids().values() for pid in pids], flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_after_a_sweep_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(DEMO_CHECKPOINT), str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pids = set(map(int, process.stdout.readline().split()))
        assert len(pids) > 8
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        left = sweep()
    assert {name.rpartition("-")[2] for name in left if f"emx{process.pid}-" in name} >= {
        "head",
        "w0",
        "router",
    }
    assert wait_gone(pids) == set()
    places = (Path("/run/netns"), Path("/sys/class/net"), Path("/tmp"), *roots())
    assert [path for place in places for path in place.glob(f"emx{process.pid}-*")] == []


def test_a_host_without_memory_for_ray_is_said(tmp_path: Path) -> None:
    before = names_of_ours()
    small = cell(workers=1, replicas=1, hosts=(Host(memory_mb=40),))
    with (
        NamespaceTopology() as topology,
        pytest.raises(RuntimeError, match=r"did not start.*out of memory on emx.*-w0: Ray itself takes"),
        topology.start(small, DEMO_CHECKPOINT, [], tmp_path / "log"),
    ):
        raise AssertionError("it started")
    assert names_of_ours() == before
