import os
import re
from pathlib import Path

import pytest
import torch

from moe_model import machine
from moe_model.kernels import choice as choice_module
from moe_model.kernels.choice import choose_kernels, set_torch_threads
from moe_model.kernels.native import native_kernels
from moe_model.machine import (
    Cores,
    FreedMemory,
    available_bytes,
    last_cache_bytes,
    memory_bytes,
    rss_bytes,
    usable_cores,
)
from moe_model.names import KernelChoice

GB = 1 << 30


def make_root(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": f"MemTotal: {16 * GB // 1024} kB\nMemAvailable:   {8 * GB // 1024} kB\nx: 1\n",
        "proc/self/cgroup": groups,
        **files,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    return root


def v2(folder: str, limit: str, usage: int, cache: int = 0) -> dict[str, str]:
    base = f"sys/fs/cgroup/{folder}"
    return {
        f"{base}/memory.max": f"{limit}\n",
        f"{base}/memory.current": f"{usage}\n",
        f"{base}/memory.stat": f"anon 5\ninactive_file {cache}\n",
    }


def v1(folder: str, limit: int, usage: int, cache: int) -> dict[str, str]:
    base = f"sys/fs/cgroup/memory/{folder}"
    return {
        f"{base}/memory.limit_in_bytes": f"{limit}\n",
        f"{base}/memory.usage_in_bytes": f"{usage}\n",
        f"{base}/memory.stat": f"inactive_file 7\ntotal_inactive_file {cache}\n",
    }


def test_without_a_group_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available_bytes(make_root(tmp_path, "", {})) == 8 * GB
    assert available_bytes(make_root(tmp_path, "0::/a\n", v2("a", "max", 5))) == 8 * GB
    assert available_bytes(make_root(tmp_path, "0::/a\n", v2("a", str(99 * GB), 5))) == 8 * GB


def test_a_group_s_limit_counts_and_its_file_cache_is_left(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/a/b\n", v2("a/b", str(4 * GB), 3 * GB, GB // 2))
    assert available_bytes(root) == GB + GB // 2


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    files = v2("a/b", str(4 * GB), GB) | v2("a", str(2 * GB), GB + 1)
    assert available_bytes(make_root(tmp_path, "0::/a/b\n", files)) == GB - 1


def test_in_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/../../host/path\n", v2("", str(2 * GB), GB))
    assert available_bytes(root) == GB


def test_the_older_groups(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/x\n4:memory:/a\n0::/\n"
    root = make_root(tmp_path, groups, v1("a", 3 * GB, 2 * GB, GB // 4) | v1("", 1 << 62, 9 * GB, 0))
    assert available_bytes(root) == GB + GB // 4


def test_more_than_allowed_is_nothing_left(tmp_path: Path) -> None:
    assert available_bytes(make_root(tmp_path, "0::/a\n", v2("a", str(GB), 2 * GB))) == 0


def test_this_process_has_memory() -> None:
    assert 1 << 20 < rss_bytes() < 1 << 40
    assert 0 < available_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


MOUNT_V2 = "30 1 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
MOUNTS_HYBRID = (
    "30 1 0:26 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw\n"
    "31 1 0:27 /docker/x /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
    "32 1 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "33 1\n"
)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 5, 6})


def max_of(folder: str, text: str, base: str = "sys/fs/cgroup") -> dict[str, str]:
    return {f"{base}/{folder}/cpu.max": f"{text}\n"}


def cfs_of(folder: str, quota: int, period: int, base: str = "sys/fs/cgroup/cpu") -> dict[str, str]:
    return {
        f"{base}/{folder}/cpu.cfs_quota_us": f"{quota}\n",
        f"{base}/{folder}/cpu.cfs_period_us": f"{period}\n",
    }


HYBRID = "sys/fs/cgroup/cpu,cpuacct"
V1_GROUPS = "5:cpu,cpuacct:/docker/x\n4:memory:/a\n0::/\n"
QUOTAS: dict[str, tuple[str, dict[str, str], int]] = {
    "no groups": ("", {}, 4),
    "v2, none": ("0::/a\n", max_of("a", "max 100000"), 4),
    "v2, the root has no file": ("0::/\n", {}, 4),
    "v2, half a core": ("0::/a\n", max_of("a", "50000 100000"), 1),
    "v2, rounded down": ("0::/a\n", max_of("a", "299999 100000"), 2),
    "v2, whole": ("0::/a\n", max_of("a", "300000 100000"), 3),
    "v2, another period": ("0::/a\n", max_of("a", "20000 10000"), 2),
    "v2, more than the cores": ("0::/a\n", max_of("a", "800000 100000"), 4),
    "v2, the tightest above": (
        "0::/a/b/c\n",
        max_of("a/b/c", "max 100000") | max_of("a", "200000 100000"),
        2,
    ),
    "v2, the innermost": ("0::/a/b\n", max_of("a/b", "100000 100000") | max_of("a", "300000 100000"), 1),
    "v2, a container's own name space": ("0::/\n", max_of("", "100000 100000"), 1),
    "v2, the host's path": ("0::/../../pods/x\n", max_of("", "200000 100000"), 2),
    "v2, only the quota": ("0::/a\n", max_of("a", "200000"), 2),
    "v2, not to be read as numbers": ("0::/a\n", max_of("a", "many 5\n-1 0"), 4),
    "v2, a period of none": ("0::/a\n", max_of("a", "100000 0"), 4),
    "v1, none": ("3:cpu:/a\n", cfs_of("a", -1, 100000), 4),
    "v1, half a core": ("3:cpu:/a\n", cfs_of("a", 50000, 100000), 1),
    "v1, the tightest above": (
        "3:cpu:/a/b\n",
        cfs_of("a/b", 300000, 100000) | cfs_of("a", 200000, 100000),
        2,
    ),
    "v1, mounted with another": (
        V1_GROUPS,
        {"proc/self/mountinfo": MOUNTS_HYBRID} | cfs_of("", 200000, 100000, HYBRID),
        2,
    ),
    "v2 beside v1": (
        V1_GROUPS,
        {"proc/self/mountinfo": MOUNTS_HYBRID} | max_of("", "300000 100000", "sys/fs/cgroup/unified"),
        3,
    ),
    "v2, mounted elsewhere": (
        "0::/a\n",
        {"proc/self/mountinfo": MOUNT_V2.replace("/sys/fs", "/run")}
        | max_of("a", "100000 100000", "run/cgroup"),
        1,
    ),
}


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("case", QUOTAS)
def test_no_more_cores_than_there_is_time_for(tmp_path: Path, case: str) -> None:
    groups, files, expected = QUOTAS[case]
    cores = usable_cores(make_root(tmp_path, groups, files))
    assert cores.number == expected
    assert ("quota" in cores.why) == cores.is_quota == (expected < 4)


@pytest.mark.usefixtures("four_cores")
def test_a_file_that_cannot_be_read_is_no_quota(tmp_path: Path) -> None:
    root = make_root(tmp_path, "0::/a\n", {})
    (root / "sys/fs/cgroup/a/cpu.max").mkdir(parents=True)
    assert usable_cores(root) == Cores(4, "it may run on 4 cores")


def test_all_memory_is_the_tightest_groups(tmp_path: Path) -> None:
    files = v2("a/b", "max", GB) | v2("a", str(2 * GB), GB)
    assert memory_bytes(make_root(tmp_path / "v2", "0::/a/b\n", files)) == 2 * GB
    assert memory_bytes(make_root(tmp_path / "v1", "4:memory:/a\n", v1("a", 3 * GB, GB, 0))) == 3 * GB
    assert memory_bytes(make_root(tmp_path / "no", "0::/a\n", {})) == 16 * GB


def test_the_last_cache_is_the_largest(tmp_path: Path) -> None:
    folder = "sys/devices/system/cpu/cpu0/cache"
    files = {f"{folder}/index{n}/size": f"{kib}K\n" for n, kib in enumerate((32, 32, 512, 32768))}
    assert last_cache_bytes(make_root(tmp_path / "own", "", files)) == 32 << 20
    assert last_cache_bytes(make_root(tmp_path / "odd", "", {f"{folder}/index0/size": "?\n"})) == 0
    assert last_cache_bytes(tmp_path / "none") == 0


@pytest.mark.parametrize("choice", ["auto", "torch"])
def test_whatever_computes_asks_for_no_more_threads(
    monkeypatch: pytest.MonkeyPatch, choice: KernelChoice
) -> None:
    threads: list[int] = []
    for place in (choice_module, native_kernels):
        monkeypatch.setattr(place, "usable_cores", lambda: Cores(3, "a quota"))
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    set_torch_threads("torch", "cpu", None)
    assert threads == [3]
    kernels = choose_kernels(choice, "cpu")
    if isinstance(kernels, native_kernels.NativeKernels):
        assert kernels.num_threads == 3


def test_the_machine_is_asked_in_one_place() -> None:
    """Of the affinity, the number of processors and the groups; chaos makes groups, and does not ask."""
    asking = re.compile(r"sched_getaffinity|cpu_count\(|cpu\.max|cfs_quota|memory\.max|limit_in_bytes")
    root = Path(__file__).parents[2]
    found = [
        path.relative_to(root).as_posix()
        for room in ("moe_model", "expert_workers", "coordinator", "benchmarks")
        for path in (root / room).rglob("*.py")
        if asking.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["moe_model/machine.py"]


def test_freed_memory_is_given_back_when_much_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back = list[int]()
    monkeypatch.setattr(machine, "give_back_freed_memory", lambda: given_back.append(1))
    freed, half = FreedMemory(), FreedMemory.LIMIT_BYTES // 2
    counts = []
    for _ in range(5):
        freed.add(half)
        counts.append(len(given_back))
    assert counts == [0, 1, 1, 2, 2]
