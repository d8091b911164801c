"""How much memory this process has and may still take. Needs Linux's /proc; knows both control groups."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")


def rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(root: Path = _ROOT) -> int:
    """What the machine has left, or the tightest control group above this process if that is less.

    A group's file cache counts as left: the kernel takes it back. `root` is where /proc and /sys are.
    """
    left = _kilobytes(root / "proc/meminfo", "MemAvailable:")
    for folder, names in _groups(root):
        limit, usage = _read(folder / names.limit).strip(), _read(folder / names.usage).strip()
        if limit.isdigit() and usage.isdigit() and int(limit) - int(usage) < left:
            # Looked at only where it counts, as the kernel takes its time over this file.
            cache = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
            left = min(left, int(limit) - int(usage) + int(cache.get(names.cache, 0)))
    return max(0, left)


def num_oom_kills(root: Path = _ROOT) -> int:
    """How many processes the kernel has killed on this machine for want of memory; 0: it does not say."""
    lines = [line.split() for line in _read(root / "proc/vmstat").splitlines()]
    return next((int(line[1]) for line in lines if line[0] == "oom_kill"), 0)


class _Names(NamedTuple):
    """Files of a limit and of what is used of it, and in memory.stat the part that is inactive file cache."""

    limit: str
    usage: str
    cache: str


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Names("memory.max", "memory.current", "inactive_file")


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The folder of each group of memory that this process is in."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            yield from ((folder, _V2) for folder in _upwards(root / "sys/fs/cgroup", group))
        elif "memory" in controllers.split(","):
            yield from ((folder, _V1) for folder in _upwards(root / "sys/fs/cgroup/memory", group))


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """A group and all above it. In a container the group's path may be the host's, and only the mount's own
    folder is there: that is the container's."""
    path = mount / group.lstrip("/")
    for folder in (path, *path.parents):
        yield folder
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
