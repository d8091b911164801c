"""Control groups that hold a host to its caps, version 1 or 2: processor time by a quota, memory by a limit.

Their names hold the pid of the process that made them, as the names of namespaces do: a later run takes away
what a killed one has left.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos.cgroups import MOUNTS, Cgroup
from chaos.processes import FaultError

CONTROLLERS = ("cpu", "memory")
# The kernel takes no quota below a millisecond. In the longest stop of a host with few cores its worker
# answers no call: the period is as short as the quota allows.
_PERIOD_US, _MIN_QUOTA_US = 4_000, 1_000
_END_TIMEOUT = 10.0
# What enters the groups by itself, so that all that it starts is in them from the beginning.
_ENTER = 'for procs in "$0" "$1"; do echo $$ > "$procs" || exit 1; done; shift; exec "$@"'


class HostGroup:
    """The groups of one host, one for each controller: of version 2 the same."""

    def __init__(self, name: str, mounts: Path = MOUNTS) -> None:
        """Raises RuntimeError where such groups cannot be made, and says why."""
        try:
            self._cpu = Cgroup("cpu", name, mounts)
        except FaultError as error:
            raise RuntimeError(str(error)) from None
        try:
            self._memory = self._group_of_memory(name, mounts)
        except (FaultError, OSError) as error:
            self._cpu.close()
            raise RuntimeError(str(error)) from None

    def _group_of_memory(self, name: str, mounts: Path) -> Cgroup:
        if self._cpu.version == 1:
            return Cgroup("memory", name, mounts)
        (self._cpu.folder.parent / "cgroup.subtree_control").write_text("+memory")
        return self._cpu

    def entering(self, command: list[str]) -> list[str]:
        """The command line that runs a command in here; it becomes that command."""
        procs = [str(group.folder / "cgroup.procs") for group in (self._cpu, self._memory)]
        return ["sh", "-c", _ENTER, *procs, *command]

    def weigh(self, num_processes: int) -> None:
        """Where processes want more cores than there are, all in here together count as so many without a
        group. RuntimeError."""
        with _told():
            if self._cpu.version == 2:
                self._cpu.write("cpu.weight", str(min(10_000, 100 * num_processes)))
            else:
                self._cpu.write("cpu.shares", str(1024 * num_processes))

    def limit_cores(self, cores: float | None) -> None:
        """From now on; None: no limit. Raises RuntimeError."""
        period = period_us(cores)
        quota = None if cores is None else max(_MIN_QUOTA_US, round(cores * period))
        with _told():
            if self._cpu.version == 2:
                self._cpu.write("cpu.max", f"{'max' if quota is None else quota} {period}")
            else:
                # Without a quota first: a group above none takes any period.
                self._cpu.write("cpu.cfs_quota_us", "-1")
                self._cpu.write("cpu.cfs_period_us", str(period))
                if quota is not None:
                    self._cpu.write("cpu.cfs_quota_us", str(quota))

    def limit_memory(self, megabytes: float | None) -> None:
        """Of 1e6 bytes; None: no limit. Raises RuntimeError, also where more than that is in use."""
        is_new = self._memory.version == 2
        none = "max" if is_new else "-1"
        text = none if megabytes is None else str(int(megabytes * 1e6))
        with _told():
            self._memory.write("memory.max" if is_new else "memory.limit_in_bytes", text)

    @property
    def memory_bytes(self) -> int:
        """What is in use, the kernel's cache of files included."""
        name = "memory.current" if self._memory.version == 2 else "memory.usage_in_bytes"
        return int((self._memory.folder / name).read_text())

    @property
    def num_throttled(self) -> int:
        """In how many periods the quota was used up."""
        return self._cpu.counter("cpu.stat", "nr_throttled")

    @property
    def num_oom_kills(self) -> int:
        name = "memory.events" if self._memory.version == 2 else "memory.oom_control"
        return self._memory.counter(name, "oom_kill")

    def pids(self) -> set[int]:
        return _pids(self._cpu.folder) | _pids(self._memory.folder)

    def close(self) -> None:
        """Ends what runs in here. Idempotent."""
        for folder in {self._cpu.folder, self._memory.folder}:
            remove(folder)


def roots(mounts: Path = MOUNTS) -> Iterator[Path]:
    """Where groups of hosts may be: each controller's hierarchy."""
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and set(options.split(",")) & set(CONTROLLERS)):
            yield Path(place)


def missing_groups(mounts: Path = MOUNTS) -> str:
    """What this machine lacks for a HostGroup, in one line; empty where one can be made."""
    try:
        HostGroup(f"emx{os.getpid()}-probe", mounts).close()
    except RuntimeError as error:
        return f"hosts need control groups: {error}"
    return ""


def period_us(cores: float | None) -> int:
    """In which a host has its quota anew, in microseconds."""
    return _PERIOD_US if cores is None else max(_PERIOD_US, round(_MIN_QUOTA_US / cores))


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except FaultError as error:
        raise RuntimeError(str(error)) from None


def remove(folder: Path) -> None:
    """A group and all that runs in it. RuntimeError where it does not go within seconds."""
    deadline = time.monotonic() + _END_TIMEOUT
    while folder.exists():
        for pid in _pids(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            folder.rmdir()
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"control group {folder}: does not go, {sorted(_pids(folder))} run in it")
        time.sleep(0.01)


def _pids(folder: Path) -> set[int]:
    try:
        return set(map(int, (folder / "cgroup.procs").read_text().split()))
    except OSError:
        return set()
