"""How much memory this process has and may still take. Needs Linux's /proc; knows both control groups."""

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(root: Path = _ROOT) -> int:
    """What the machine has left, or the tightest control group above this process if that is less.

    A group's file cache counts as left: the kernel takes it back. `root` is where /proc and /sys are.
    """
    left = [_kilobytes(root / "proc/meminfo", "MemAvailable:"), *_group_bytes(root)]
    return max(0, min(left))


def num_oom_kills(root: Path = _ROOT) -> int:
    """How many processes the kernel has killed on this machine for want of memory; 0: it does not say."""
    lines = [line.split() for line in _read(root / "proc/vmstat").splitlines()]
    return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)


def _group_bytes(root: Path) -> Iterator[int]:
    """Of each limited group of memory that this process is in."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            yield from _limited(root / "sys/fs/cgroup", group, _V2)
        elif "memory" in controllers.split(","):
            yield from _limited(root / "sys/fs/cgroup/memory", group, _V1)


# limit, usage, the name of the inactive file cache
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")


def _limited(mount: Path, group: str, names: tuple[str, str, str]) -> Iterator[int]:
    """Of a group and all above it. In a container the group's path may be the host's, and only the mount's
    own folder is there: that is the container's."""
    limit_name, usage_name, cache_name = names
    path = mount / group.lstrip("/")
    for folder in (path, *path.parents):
        limit, usage = _read(folder / limit_name).strip(), _read(folder / usage_name).strip()
        if limit.isdigit() and usage.isdigit():
            cache = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            yield int(limit) - int(usage) + int(cache.get(cache_name, 0))
        if folder == mount:
            return


def _kilobytes(path: Path, name: str) -> int:
    lines = [line.split() for line in _read(path).splitlines()]
    return next((1024 * int(fields[1]) for fields in lines if fields[0] == name), 0)


def _read(path: Path) -> str:
    """Empty where there is no such file, or none for us."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
