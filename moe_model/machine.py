"""What this process may use of the machine: cores and memory. Needs Linux's /proc; knows both control groups.

Whatever chooses a number of threads or a size of memory asks here. The tightest group above the process
counts: a container sees the whole machine in /proc, and may have half a core of it.
"""

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_MOUNT = "sys/fs/cgroup"


class Cores(NamedTuple):
    """How many threads can run at once, and why no more; for people. `is_quota`: more of them would run, and
    all be stopped together when the quota is used up."""

    number: int
    why: str
    is_quota: bool = False


def give_back_freed_memory() -> None:
    """To the system, what the C library has kept of it for use again: after a model was loaded as much as
    several of its modules. Nothing where the library cannot (it is glibc's)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class FreedMemory:
    """Of a load: gives it back whenever so much has been read. Between what is kept lies what was read, in
    pieces too small for the C library to return by itself: the peak would grow by a layer's bytes."""

    LIMIT_BYTES = 128 << 20

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_bytes = 0

    def add(self, num_bytes: int) -> None:
        """So much more was read. Any thread."""
        with self._lock:
            self._num_bytes += num_bytes
            is_much = self._num_bytes >= self.LIMIT_BYTES
            if is_much:
                self._num_bytes = 0
        if is_much:
            give_back_freed_memory()


def usable_cores(root: Path = _ROOT) -> Cores:
    """The cores that the process may run on, or the quota of its control groups, rounded down, if that is
    less; at least one. More threads than a quota has time for are all stopped together when it is used up.

    `root` is where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0))
    quota = min(_quotas(root), default=float(allowed))
    if quota >= allowed:
        return Cores(allowed, f"it may run on {allowed} cores")
    return Cores(max(1, int(quota)), f"its control group has a quota of {quota:g} cores", is_quota=True)


def memory_bytes(root: Path = _ROOT) -> int:
    """All memory there is for this process and its neighbours in the tightest control group."""
    return min(_memory_limits(root), default=1 << 62)


def last_cache_bytes(root: Path = _ROOT) -> int:
    """Of the processor's largest cache that the first core reaches; 0 where the system does not say."""
    sizes = (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((_kib(size.read_text(encoding="ascii")) for size in sizes), default=0) << 10


def _kib(text: str) -> int:
    """As "32768K"."""
    text = text.strip()
    return int(text[:-1]) if text.endswith("K") and text[:-1].isdecimal() else 0


def rss_bytes() -> int:
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def available_bytes(root: Path = _ROOT) -> int:
    """What the machine has left, or the tightest control group above this process if that is less.

    A group's file cache counts as left: the kernel takes it back.
    """
    left = _kilobytes(root / "proc/meminfo", "MemAvailable:")
    for folder, names in _memory_groups(root):
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


def _quotas(root: Path) -> Iterator[float]:
    """In cores, of each group that has one."""
    for folder, version in _groups(root, "cpu"):
        if version == 2:
            fields = _read(folder / "cpu.max").split()
        else:
            fields = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        # "max" and -1 are no quota; where only the quota is told, the period is the kernel's own.
        quota, period = [*fields, "100000"][:2] if fields else ("", "")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    """The machine's own and each group's."""
    yield _kilobytes(root / "proc/meminfo", "MemTotal:") or 1 << 62
    for folder, names in _memory_groups(root):
        limit = _read(folder / names.limit).strip()
        if limit.isdigit():
            yield int(limit)


def _memory_groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    for folder, version in _groups(root, "memory"):
        yield folder, _V2 if version == 2 else _V1


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """The folder and the version of each group of a controller that this process is in, innermost first."""
    mounts = _mounts(root, controller)
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = 2 if controllers == "" else 1
        if version == 2 or controller in controllers.split(","):
            for mount in mounts[version]:
                yield from ((folder, version) for folder in _upwards(mount, group))


def _mounts(root: Path, controller: str) -> dict[int, list[Path]]:
    """Where the groups of each version are to be found; where they mostly are if the system does not say."""
    found: dict[int, list[Path]] = {1: [], 2: []}
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), [*after.split(), "", "", ""][:3]
        if len(fields) > 4 and kind == "cgroup2":
            found[2].append(root / fields[4].lstrip("/"))
        elif len(fields) > 4 and kind == "cgroup" and controller in options.split(","):
            found[1].append(root / fields[4].lstrip("/"))
    usual = {1: [root / _MOUNT / controller], 2: [root / _MOUNT]}
    return {version: found[version] or usual[version] for version in found}


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
    return next((1024 * int(fields[1]) for fields in lines if fields[:1] == [name]), 0)


def _read(path: Path) -> str:
    """Empty where there is no such file, or none for us."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
