"""Control groups: files of both versions on a made-up machine, and the kernel's own where we may."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos import events
from chaos.cgroups import Cgroup, group_name, limit_cpu, limit_memory, num_oom_kills, num_throttled
from chaos.faults import Faults
from chaos.processes import FaultError
from tests.chaos_engine.test_faults import broken, pause
from tests.chaos_engine.victims import GROW, victim


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Folders where /proc/self/mounts of `mounted` says that there are controllers; process 7 is in /home."""
    (tmp_path / "proc" / "7").mkdir(parents=True)
    return tmp_path


def version_1(machine: Path) -> Cgroup:
    root = machine / "cpu"
    (root / "home").mkdir(parents=True)
    mounts = machine / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup {root} cgroup rw,cpu 0 0\n")
    (machine / "proc" / "7" / "cgroup").write_text("5:memory:/else\n2:cpu,cpuacct:/home\n0::/\n")
    return Cgroup("cpu", "ours", mounts, machine / "proc")


def version_2(machine: Path, controllers: str = "cpu memory") -> Cgroup:
    root = machine / "unified"
    (root / "home").mkdir(parents=True)
    (root / "cgroup.controllers").write_text(controllers)
    mounts = machine / "mounts"
    mounts.write_text(f"cgroup2 {root} cgroup2 rw 0 0\n")
    (machine / "proc" / "7" / "cgroup").write_text("0::/home\n")
    return Cgroup("cpu", "ours", mounts, machine / "proc")


def test_version_1(machine: Path) -> None:
    group = version_1(machine)
    limit_cpu(group, 0.2)
    group.take(7)
    assert (group.folder / "cgroup.procs").read_text() == "7"
    quota = int((group.folder / "cpu.cfs_quota_us").read_text())
    assert quota / int((group.folder / "cpu.cfs_period_us").read_text()) == pytest.approx(0.2)
    (group.folder / "cpu.stat").write_text("nr_periods 9\nnr_throttled 4\n")
    assert num_throttled(group) == 4
    limit_memory(group)
    assert (group.folder / "memory.limit_in_bytes").read_text() == "0"
    group.close()
    assert (machine / "cpu" / "home" / "cgroup.procs").read_text() == "7", "it is where it was"


def test_version_2(machine: Path) -> None:
    group = version_2(machine)
    assert (machine / "unified" / "cgroup.subtree_control").read_text() == "+cpu"
    limit_cpu(group, 0.05)
    group.take(7)
    assert (group.folder / "cpu.max").read_text() == "1000 20000"
    limit_memory(group)
    assert (group.folder / "memory.max").read_text() == "0"
    (group.folder / "memory.events").write_text("low 0\noom_kill 1\n")
    assert num_oom_kills(group) == 1
    group.close()
    assert (machine / "unified" / "home" / "cgroup.procs").read_text() == "7"


def test_a_machine_without_the_controller(machine: Path) -> None:
    with pytest.raises(FaultError, match="there is no cpu controller"):
        version_2(machine, "memory")


def test_a_file_that_cannot_be_written(machine: Path) -> None:
    group = version_1(machine)
    (group.folder / "cpu.cfs_period_us").mkdir()
    with pytest.raises(FaultError, match=r"cpu\.cfs_period_us: Is a directory"):
        limit_cpu(group, 0.2)


@pytest.fixture
def kernel() -> Iterator[None]:
    """Skips where this process may make no groups."""
    try:
        for controller in ("cpu", "memory"):
            Cgroup(controller, group_name(0)).close()
    except FaultError as error:
        pytest.skip(str(error))
    yield
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if " cgroup" in line:
            assert not list(Path(line.split()[1]).glob(f"expertmesh-chaos-{os.getpid()}-*")), (
                "no group is left"
            )


@pytest.mark.usefixtures("kernel")
def test_the_kernel_slows_a_process() -> None:
    with victim() as process:
        proof = broken(events.Slow(share=0.05, seconds=0.5, by="cgroup"), process.pid)
        assert f"process {process.pid} throttled" in proof
        assert "expertmesh-chaos" not in Path(f"/proc/{process.pid}/cgroup").read_text()


@pytest.mark.usefixtures("kernel")
def test_the_kernel_kills_a_process_that_wants_more() -> None:
    with victim(GROW) as process:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert "oom_kill 1" in broken(events.Oom(), process.pid)
        assert process.wait() == -9


@pytest.mark.usefixtures("kernel")
def test_a_process_that_wants_nothing_is_not_killed() -> None:
    with victim(GROW) as process, pytest.raises(FaultError, match="took no memory within"):
        broken(events.Oom(timeout=0.2), process.pid)


@pytest.mark.usefixtures("kernel")
def test_an_idle_process_is_not_slowed_by_a_quota() -> None:
    """No proof, no fault."""
    with victim(GROW) as process, pytest.raises(FaultError, match="never throttled"):
        broken(events.Slow(share=0.9, seconds=0.2, by="cgroup"), process.pid)


def test_without_groups_signals_do_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise FaultError("no groups here")

    monkeypatch.setattr("chaos.faults.Cgroup", none)
    with victim() as process:
        proof = Faults(pause).do(events.Slow(share=0.5, seconds=0.2), process.pid, 1)
        assert "stopped" in proof
        with pytest.raises(FaultError, match="no groups here"):
            Faults(pause).do(events.Slow(by="cgroup"), process.pid, 1)
