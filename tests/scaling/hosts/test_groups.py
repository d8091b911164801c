"""Caps of hosts: what is written for both versions on a made-up machine, and what the kernel's own do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.process_tree import cpu_seconds
from scaling.hosts.groups import HostGroup, missing_groups, roots
from scaling.hosts.left_over import sweep
from scaling.hosts.ray_hosts import wait_until
from tests.chaos_engine.victims import GROW, SPIN
from tests.integration.processes import wait_gone


def mounted(folder: Path, *lines: str) -> Path:
    mounts = folder / "mounts"
    mounts.write_text("".join(f"{line}\n" for line in ("proc /proc proc rw 0 0", *lines)))
    return mounts


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    for name in ("cpu", "memory"):
        (tmp_path / name).mkdir()
    lines = [f"cgroup {tmp_path / name} cgroup rw,{name} 0 0" for name in ("cpu", "memory")]
    return mounted(tmp_path, *lines, f"cgroup {tmp_path / 'pids'} cgroup rw,pids 0 0")


@pytest.fixture
def version_2(tmp_path: Path) -> Path:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "cgroup.controllers").write_text("cpu memory")
    return mounted(tmp_path, f"cgroup2 {tmp_path / 'all'} cgroup2 rw 0 0")


def quota_of(group: Path, cores: float | None, mounts: Path) -> float:
    made = HostGroup(group.name, mounts)
    made.limit_cores(cores)
    return int((group / "cpu.cfs_quota_us").read_text()) / int((group / "cpu.cfs_period_us").read_text())


@pytest.mark.parametrize("cores", [0.05, 0.2, 0.5, 1.0, 3.0])
def test_a_quota_of_version_1(version_1: Path, tmp_path: Path, cores: float) -> None:
    assert quota_of(tmp_path / "cpu" / "emx1-1-w0", cores, version_1) == pytest.approx(cores)
    assert int((tmp_path / "cpu" / "emx1-1-w0" / "cpu.cfs_quota_us").read_text()) >= 1000


def test_no_limits_in_version_1(version_1: Path, tmp_path: Path) -> None:
    group = HostGroup("emx1-1-w0", version_1)
    group.limit_cores(None)
    group.limit_memory(None)
    assert (tmp_path / "cpu" / "emx1-1-w0" / "cpu.cfs_quota_us").read_text() == "-1"
    assert (tmp_path / "memory" / "emx1-1-w0" / "memory.limit_in_bytes").read_text() == "-1"


def test_limits_of_version_2(version_2: Path, tmp_path: Path) -> None:
    group, folder = HostGroup("emx1-1-w0", version_2), tmp_path / "all" / "emx1-1-w0"
    group.limit_cores(0.1)
    group.limit_memory(400)
    assert (folder / "cpu.max").read_text() == "1000 10000"
    assert (folder / "memory.max").read_text() == "400000000"
    group.limit_cores(None)
    group.limit_memory(None)
    assert (folder / "cpu.max").read_text() == "max 4000"
    assert (folder / "memory.max").read_text() == "max"
    assert (tmp_path / "all" / "cgroup.subtree_control").read_text() == "+memory"


def test_where_groups_may_be(version_1: Path, tmp_path: Path) -> None:
    assert list(roots(version_1)) == [tmp_path / "cpu", tmp_path / "memory"]


def test_what_is_missing_of_groups_is_said_in_one_line(version_1: Path, tmp_path: Path) -> None:
    assert missing_groups(version_1) == ""
    assert [path.name for path in (tmp_path / "cpu").iterdir()] == [], "and nothing is left of the try"
    (tmp_path / "memory").rmdir()
    said = missing_groups(version_1)
    assert said.startswith("hosts need control groups: ")
    assert "memory" in said
    assert list((tmp_path / "cpu").iterdir()) == [], "of the other controller too"
    assert "there is no cpu controller" in missing_groups(mounted(tmp_path))


@pytest.fixture
def group(capable: None) -> Iterator[HostGroup]:
    group = HostGroup(f"emx{os.getpid()}-9-test")
    yield group
    group.close()
    assert not [path for root in roots() for path in root.glob(f"emx{os.getpid()}-9-*")]


def start(group: HostGroup, program: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        group.entering([sys.executable, "-c", program]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def used_share(process: subprocess.Popen[str], seconds: float) -> float:
    """Of a core, of so many seconds that it uses up."""
    began, before = time.monotonic(), cpu_seconds([process.pid])
    wait_until(lambda: cpu_seconds([process.pid]) - before >= seconds, 30.0, "it does not run")
    return (cpu_seconds([process.pid]) - before) / (time.monotonic() - began)


@pytest.mark.chaos
@pytest.mark.parametrize("cores", [0.25, 0.5])
def test_a_quota_is_what_a_host_gets(group: HostGroup, cores: float) -> None:
    group.limit_cores(cores)
    # Before whatever else runs on the machine.
    group.weigh(200)
    process = start(group, SPIN)
    try:
        assert 0.7 * cores < used_share(process, 1.0) < 1.1 * cores
        assert group.num_throttled > 50
        assert group.pids() == {process.pid}
        group.limit_cores(None)
        before = group.num_throttled
        used_share(process, 0.2)
        assert group.num_throttled <= before + 1, "the quota changes while it runs"
    finally:
        end(process)


@pytest.mark.chaos
def test_a_host_that_takes_more_memory_than_it_has_loses_the_process(group: HostGroup) -> None:
    group.limit_memory(60)
    process = start(group, GROW)
    try:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.wait(30) == -signal.SIGKILL
        assert group.num_oom_kills == 1
        assert group.memory_bytes <= 60e6
    finally:
        end(process)


KILLED = """
import os, signal, subprocess
from scaling.hosts.groups import HostGroup
group = HostGroup(f"emx{os.getpid()}-1-w0")
group.limit_cores(0.5)
child = subprocess.Popen(group.entering(["sleep", "600"]), start_new_session=True, stdout=-3)
while child.pid not in group.pids(): pass
print(os.getpid(), child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.chaos
def test_groups_that_a_killed_run_has_left_are_swept_away(group: HostGroup) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    pid, child = killed.stdout.split()
    assert Path(f"/proc/{child}").exists()
    left = [path for root in roots() for path in root.glob(f"emx{pid}-*")]
    assert len(left) == len({root for root in roots() if (root / f"emx{pid}-1-w0").exists()}) > 0
    assert f"emx{pid}-1-w0" in sweep()
    assert wait_gone({int(child)}) == set()
    assert not any(path.exists() for path in left)
    group.limit_cores(0.5)  # What is in use is let alone.
