"""A large plain file from outside, read piece by piece: never mapped, and open only while a piece is read.

Knows nothing of formats. A process that has one for hours has no file open.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_model.errors import CheckpointError
from moe_model.files.mirrored import mirrored_file
from moe_model.files.whole_file import reason

# So much is read at a time of what is only summed.
_CHUNK_BYTES = 8 << 20


class PieceFile:
    """A regular file; a link is followed, or refused. Every method raises CheckpointError naming the file.

    A file that another one has replaced since, or that has been written to, is refused and not read. One of a
    mirrored folder is read through that; the sums of its blocks take the place of times. `digest`: what is
    known to differ where its content does, None of most files.
    """

    def __init__(self, path: Path, *, follow_links: bool = True) -> None:
        self.path, self._follow_links = path, follow_links
        self._mirrored = mirrored_file(path)
        self.digest = None if self._mirrored is None else self._mirrored.digest
        if self._mirrored is not None:
            self.size = self._mirrored.size
            return
        with self._opened() as (_, status):
            self.size = status.st_size
        self._identity = _identity(status)

    def read(self, offset: int, size: int) -> bytearray:
        data = bytearray(size)
        self.read_into(offset, memoryview(data))
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fills all of `view`, of bytes, from `offset` on."""
        if self._mirrored is not None:
            self._mirrored.read_into(offset, view)
            return
        with self._opened(is_same=True) as (descriptor, _):
            try:
                filled = 0
                while filled < len(view):
                    count = os.preadv(descriptor, [view[filled:]], offset + filled)
                    if count == 0:
                        raise CheckpointError(f"{self.path}: was cut short while it was read")
                    filled += count
            except OSError as error:
                raise CheckpointError(f"{self.path}: {reason(error)}") from None

    def chunks(self) -> Iterator[bytearray]:
        """The whole file, in order."""
        for offset in range(0, self.size, _CHUNK_BYTES):
            yield self.read(offset, min(_CHUNK_BYTES, self.size - offset))

    def forget(self) -> None:
        """Its sum is wrong, as its reader knows: where it was fetched, it will be again."""
        if self._mirrored is not None:
            self._mirrored.forget()

    @contextmanager
    def _opened(self, *, is_same: bool = False) -> Iterator[tuple[int, os.stat_result]]:
        """A descriptor, and what it is of. `is_same`: it must still be the file that it was."""
        # O_NONBLOCK: a pipe put in the file's place is refused below instead of waited for.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        if not self._follow_links:
            flags |= os.O_NOFOLLOW
            if self.path.is_symlink():
                raise CheckpointError(f"{self.path}: is a symbolic link")
        try:
            descriptor = os.open(self.path, flags)
        except OSError as error:
            raise CheckpointError(f"{self.path}: {reason(error)}") from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{self.path}: is not a regular file")
            if is_same and status.st_size < self.size:
                raise CheckpointError(f"{self.path}: was cut short while it was read")
            if is_same and _identity(status) != self._identity:
                raise CheckpointError(f"{self.path}: has changed since it was opened")
            yield descriptor, status
        finally:
            os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    """Numbers of inodes and devices are not the same for ever on every file system."""
    return status.st_size, status.st_mtime_ns
