"""Limits of one process by a control group of its own, version 1 or 2."""

import contextlib
import os
import time
from pathlib import Path

from chaos.processes import FaultError

MOUNTS, PROC = Path("/proc/self/mounts"), Path("/proc")
# Short, so that a worker that computes in bursts meets its quota.
PERIOD_US = 10_000
_MIN_QUOTA_US = 1_000


class Cgroup:
    """A group below the root of a controller."""

    def __init__(self, controller: str, name: str, mounts: Path = MOUNTS, proc: Path = PROC) -> None:
        """Raises FaultError where such groups cannot be made: no such controller, no rights."""
        self.version, self._root = _find(controller, mounts)
        self._controller, self._proc = controller, proc
        self.folder = self._root / name
        self._home: tuple[int, Path] | None = None
        try:
            if self.version == 2:
                (self._root / "cgroup.subtree_control").write_text(f"+{controller}")
            self.folder.mkdir()
        except OSError as error:
            raise FaultError(f"{self.folder}: {error.strerror}") from None

    def take(self, pid: int) -> None:
        """Moves a process in. Raises FaultError."""
        home = self._root / _path_of(pid, "" if self.version == 2 else self._controller, self._proc)
        self.write("cgroup.procs", str(pid))
        self._home = (pid, home)

    def write(self, name: str, text: str) -> None:
        """Raises FaultError."""
        try:
            (self.folder / name).write_text(text)
        except OSError as error:
            raise FaultError(f"{self.folder / name}: {error.strerror}") from None

    def counter(self, name: str, key: str) -> int:
        """The number behind a key of a file of such; 0 if it is not there."""
        try:
            lines = (self.folder / name).read_text().splitlines()
        except OSError:
            return 0
        found = [line.split()[1] for line in lines if line.split()[:1] == [key]]
        return int(found[0]) if found else 0

    def close(self) -> None:
        """Moves the process back, where it still lives, and removes the group. Never raises."""
        if self._home is not None:
            pid, home = self._home
            with contextlib.suppress(OSError):
                (home / "cgroup.procs").write_text(str(pid))
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def limit_cpu(group: Cgroup, share: float) -> None:
    """`share` of one core's time. Raises FaultError."""
    quota = max(_MIN_QUOTA_US, int(share * PERIOD_US))
    period = max(PERIOD_US, int(quota / share))
    if group.version == 2:
        group.write("cpu.max", f"{quota} {period}")
    else:
        group.write("cpu.cfs_period_us", str(period))
        group.write("cpu.cfs_quota_us", str(quota))


def num_throttled(group: Cgroup) -> int:
    return group.counter("cpu.stat", "nr_throttled")


def limit_memory(group: Cgroup) -> None:
    """Not one page more than it has: what it had before it came does not count. Raises FaultError."""
    if group.version == 2:
        group.write("memory.max", "0")
    else:
        group.write("memory.limit_in_bytes", "0")


def num_oom_kills(group: Cgroup) -> int:
    name = "memory.events" if group.version == 2 else "memory.oom_control"
    return group.counter(name, "oom_kill")


def group_name(rank: int) -> str:
    return f"expertmesh-chaos-{os.getpid()}-{rank}-{time.monotonic_ns()}"


def _find(controller: str, mounts: Path) -> tuple[int, Path]:
    """Version and root of a controller's hierarchy."""
    unified = None
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return 1, Path(place)
        if kind == "cgroup2":
            unified = Path(place)
    if unified is not None:
        with contextlib.suppress(OSError):
            if controller in (unified / "cgroup.controllers").read_text().split():
                return 2, unified
    raise FaultError(f"there is no {controller} controller of control groups on this machine")


def _path_of(pid: int, controller: str, proc: Path) -> str:
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return ""
