"""A process and all that it has started, as /proc has them: who they are and what they use together.

A process that ends while it is being looked at counts for nothing.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# What reading /proc of a process that has ended raises: of its folder, of an open file there.
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    command: tuple[str, ...]

    def runs(self, module: str) -> bool:
        """Whether it was started as `python ... -m module`."""
        return module in self.command and self.command[self.command.index(module) - 1] == "-m"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes in memory: shared pages whole in each process, and divided among those that share them."""

    rss: int
    pss: int


def tree(pid: int) -> list[Process]:
    """The process itself, if it lives; then its children, and theirs."""
    parents = dict(_parents())
    found, pids = list[Process](), [pid] if pid in parents else []
    while pids:
        one = pids.pop(0)
        pids += sorted(each for each, parent in parents.items() if parent == one)
        with suppress(*_GONE):
            found.append(Process(one, _command(one)))
    return found


def memory(pids: Sequence[int]) -> Memory:
    """Of all of them together."""
    rss = pss = 0
    for pid in pids:
        with suppress(*_GONE):
            found = fields(pid, "smaps_rollup")
            rss, pss = rss + found.get("Rss", 0), pss + found.get("Pss", 0)
    return Memory(rss << 10, pss << 10)


def peak_rss(pids: Sequence[int]) -> int:
    """The most that each of them has had, added up."""
    total = 0
    for pid in pids:
        with suppress(*_GONE):
            total += fields(pid, "status").get("VmHWM", 0)
    return total << 10


def cpu_seconds(pids: Sequence[int]) -> float:
    """What all of them have used so far."""
    ticks = 0
    for pid in pids:
        with suppress(*_GONE):
            found = _stat(pid)
            # utime and stime, the 14th and 15th of all.
            ticks += int(found[11]) + int(found[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def num_fds(pids: Sequence[int]) -> int:
    total = 0
    for pid in pids:
        with suppress(*_GONE):
            total += len(os.listdir(PROC / str(pid) / "fd"))
    return total


def num_connections(pid: int, port: int) -> int:
    """How many established ones it has at a TCP port of its own. gRPC's sockets are of IPv6, also where the
    address is of IPv4."""
    tables = ((PROC / "net" / name).read_text(encoding="ascii").splitlines()[1:] for name in ("tcp", "tcp6"))
    established = {
        fields[9]
        for table in tables
        for fields in map(str.split, table)
        if fields[3] == "01" and int(fields[1].rpartition(":")[2], 16) == port
    }
    folder, found = PROC / str(pid) / "fd", 0
    with suppress(*_GONE):
        for name in os.listdir(folder):
            with suppress(*_GONE):
                found += os.readlink(folder / name).removeprefix("socket:[").rstrip("]") in established
    return found


def fields(pid: int, name: str) -> dict[str, int]:
    """The lines of one of its files of /proc that have a number; of memory, in KiB."""
    lines = (PROC / str(pid) / name).read_text(encoding="ascii", errors="replace").splitlines()
    pairs = ((key, value.split()) for key, _, value in (line.partition(":") for line in lines))
    return {key: int(words[0]) for key, words in pairs if words and words[0].isdigit()}


def _parents() -> Iterator[tuple[int, int]]:
    """Of each process that lives, its parent's id. One that has ended and is not waited for is no process."""
    for name in os.listdir(PROC):
        if name.isdigit():
            with suppress(*_GONE):
                state, parent, *_ = _stat(int(name))
                if state != "Z":
                    yield int(name), int(parent)


def _stat(pid: int) -> list[str]:
    """From the third field on, the state; the name before it is in brackets and may hold anything."""
    return (PROC / str(pid) / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()


def _command(pid: int) -> tuple[str, ...]:
    words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    return tuple(word for word in words if word)
