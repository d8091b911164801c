"""How fast a file comes from the disk, when the page cache does not have it."""

import os
import tempfile
import time
from pathlib import Path

_AT_ONCE = 4 << 20


def read_mb_per_s(folder: Path | None = None, num_bytes: int = 256 << 20) -> float | None:
    """Megabytes (1e6 bytes) a second of a file in `folder`, None: where temporary files are; None on a file
    system that is no disk's, or has no room. The file is dropped from the cache first (posix_fadvise(2),
    which a file system may ignore)."""
    try:
        with tempfile.NamedTemporaryFile(prefix="expertmesh-disk-", dir=folder) as file:
            part = os.urandom(_AT_ONCE)
            for _ in range(max(1, num_bytes // _AT_ONCE)):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            return _read(file.fileno())
    except OSError:
        return None


def _read(fd: int) -> float:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(_AT_ONCE)
    started, place = time.perf_counter(), 0
    while num_read := os.preadv(fd, [buffer], place):
        place += num_read
    return 1e-6 * place / (time.perf_counter() - started)
