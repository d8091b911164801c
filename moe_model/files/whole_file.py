"""Plain files from outside, read whole into memory: never mapped, so that a file replaced later cannot hurt.

Knows nothing of formats.
"""

import os
import stat
from io import FileIO
from pathlib import Path

from moe_model.errors import CheckpointError


def reason(error: OSError) -> str:
    """The system's own words, without the path and the number."""
    return error.strerror or type(error).__name__


def require_regular_file(path: Path, size: int) -> None:
    """Raises CheckpointError unless `path` is itself a regular file (no link) of that many bytes."""
    try:
        status = path.lstat()
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None
    _check_status(path, status)
    if status.st_size != size:
        raise CheckpointError(f"{path}: has {status.st_size} bytes, its manifest says {size}")


def require_folder(path: Path) -> None:
    """Raises CheckpointError unless `path` is itself a folder (no link)."""
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None
    if not stat.S_ISDIR(mode):
        raise CheckpointError(f"{path}: is not a folder")


def read_file(path: Path, *, max_size: int, follow_links: bool = False) -> bytearray:
    """Reads a regular file of at most `max_size` bytes. Raises CheckpointError."""
    # O_NONBLOCK: a pipe put in the file's place is refused below instead of waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        if not follow_links and path.is_symlink():
            raise CheckpointError(f"{path}: is a symbolic link")
        with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as file:
            status = os.fstat(file.fileno())
            _check_status(path, status)
            if status.st_size > max_size:
                raise CheckpointError(f"{path}: has {status.st_size} bytes, at most {max_size} are allowed")
            return _read_all(file, status.st_size, path)
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None


def _read_all(file: FileIO, size: int, path: Path) -> bytearray:
    """Raises CheckpointError, also when the file has become shorter."""
    data = bytearray(size)
    view, filled = memoryview(data), 0
    try:
        while filled < size and (count := file.readinto(view[filled:])):
            filled += count
    except OSError as error:
        raise CheckpointError(f"{path}: {reason(error)}") from None
    if filled != size:
        raise CheckpointError(f"{path}: was cut short while it was read")
    return data


def _check_status(path: Path, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise CheckpointError(f"{path}: is a symbolic link")
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is not a regular file")
