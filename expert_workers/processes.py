"""Processes of this machine by their place in the tree, so that only ours are ended. Needs Linux's /proc."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process; `started` tells it from a later one that was given the same pid."""

    pid: int
    started: int


def children(root: int, name: str | None = None) -> frozenset[Process]:
    """The children of `root`, or those of a name."""
    return frozenset(stat.process for stat in _children(_stats(), root, name))


def descendants(root: int, through: str | None = None) -> frozenset[Process]:
    """All processes below `root`, or below those children of it whose name is `through`, they included."""
    stats = _stats()
    found = _children(stats, root, through)
    while True:
        pids = {stat.process.pid for stat in found}
        below = {stat for stat in stats if stat.parent in pids} - found
        if not below:
            return frozenset(stat.process for stat in found)
        found |= below


def members(group: int) -> frozenset[Process]:
    """Of a process group, zombies too."""
    return frozenset(stat.process for stat in _stats() if stat.group == group)


def this_process() -> Process:
    stat = _read_stat(os.getpid())
    assert stat is not None, "this is Linux, and we run"
    return stat.process


def kill_and_wait(processes: frozenset[Process], timeout: float) -> frozenset[Process]:
    """SIGKILLs those that still run; returns what is left after `timeout` seconds."""
    left = frozenset(process for process in processes if is_running(process))
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return wait_gone(left, timeout)


def wait_gone(processes: frozenset[Process], timeout: float) -> frozenset[Process]:
    """Returns those that still run when all are gone or `timeout` seconds are over."""
    deadline = time.monotonic() + timeout
    while True:
        left = frozenset(process for process in processes if is_running(process))
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(0.01)


def is_running(process: Process) -> bool:
    """Whether it is there and no zombie, which is only its exit status waiting for the parent."""
    stat = _read_stat(process.pid)
    return stat is not None and stat.process == process and stat.state not in "ZX"


@dataclass(frozen=True, slots=True)
class _Stat:
    process: Process
    name: str
    state: str
    parent: int
    group: int


def _stats() -> "list[_Stat]":
    return [stat for stat in map(_read_stat, _pids()) if stat is not None]


def _children(stats: "list[_Stat]", root: int, name: str | None) -> "set[_Stat]":
    return {stat for stat in stats if stat.parent == root and name in (None, stat.name)}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read_stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may itself hold spaces and parentheses.
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(Process(pid, int(fields[19])), name, fields[0], int(fields[1]), int(fields[2]))
