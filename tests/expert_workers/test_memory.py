import os
from pathlib import Path

from expert_workers.memory import available_bytes, rss_bytes

GB = 1 << 30


def make_root(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {
        "proc/meminfo": f"MemTotal: 99 kB\nMemAvailable:   {8 * GB // 1024} kB\nx: 1\n",
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
