"""What the kernel counts of a process, and how files are made to be read from their disk again."""

import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.process_tree import fields


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes: read, from anything; of these from disks; in memory now, shared pages whole and by its share of
    them; in memory at most so far."""

    read: int
    from_disk: int
    rss: int
    pss: int
    peak: int


def usage(pid: int) -> Usage:
    io, status = (fields(pid, name) for name in ("io", "status"))
    return Usage(
        io["rchar"],
        io["read_bytes"],
        status["VmRSS"] << 10,
        fields(pid, "smaps_rollup")["Pss"] << 10,
        status["VmHWM"] << 10,
    )


def evict(folder: Path) -> None:
    """Takes what is written of a folder's files out of the page cache."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def disk_rate(folder: Path) -> float:
    """Bytes per second of reading a folder's files, one after the other, from their disk."""
    evict(folder)
    buffer = bytearray(4 << 20)
    num_bytes, started = 0, perf_counter()
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                num_bytes += count
    return num_bytes / (perf_counter() - started)
