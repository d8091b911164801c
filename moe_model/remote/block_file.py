"""One file of a cache: its blocks, where they shall be in a sparse file, and beside it the SHA-256 of each.

A block is written before its sum, a sum is removed before its block, and what is read counts only if it has
its sum: so a process may be killed, a machine lose power and a disk rot between any two of these.
"""

import ctypes
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from moe_model.remote.listing import BLOCK_BYTES, SUM_BYTES, num_blocks

_ABSENT = bytes(SUM_BYTES)
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class BlockFile:
    """`sums` has 32 bytes for each block, zeros where the block is not here."""

    def __init__(self, data: Path, sums: Path, size: int) -> None:
        self.data, self.sums, self.size = data, sums, size

    def create(self) -> None:
        """Gives both files their sizes. Raises OSError."""
        for path, size in ((self.data, self.size), (self.sums, num_blocks(self.size) * SUM_BYTES)):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(descriptor).st_size != size:
                    os.ftruncate(descriptor, size)
            finally:
                os.close(descriptor)

    @contextmanager
    def opened(self) -> Iterator["OpenBlocks"]:
        """Raises OSError."""
        with ExitStack() as stack:
            descriptors = []
            for path in (self.data, self.sums):
                descriptors.append(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
                stack.callback(os.close, descriptors[-1])
            yield OpenBlocks(descriptors[0], descriptors[1], self.size)


class OpenBlocks:
    """While its descriptors are open, which no other thread has. Every method raises OSError."""

    def __init__(self, data: int, sums: int, size: int) -> None:
        self._data, self.sums, self._size = data, sums, size

    def load(self, first: int, view: memoryview, known: bytes | None) -> list[int]:
        """Fills `view` with the blocks from `first` on, as far as they are here; returns which are not. A
        block that has another sum than the one in `known` is not."""
        count = num_blocks(len(view))
        kept = os.pread(self.sums, count * SUM_BYTES, first * SUM_BYTES)
        if kept.strip(b"\0"):
            self._fill(first * BLOCK_BYTES, view)
        return [
            first + number
            for number in range(count)
            if (wanted := _sum_of(kept, number)) in (b"", _ABSENT)
            or (known is not None and wanted != _sum_of(known, number))
            or hashlib.sha256(_block(view, number)).digest() != wanted
        ]

    def keep(self, first: int, view: memoryview, sums: bytes) -> None:
        """Blocks and their sums, in this order."""
        _write_all(self._data, view, first * BLOCK_BYTES)
        _write_all(self.sums, memoryview(sums), first * SUM_BYTES)

    def drop(self, blocks: Sequence[int] | range) -> None:
        """Frees what they take of the disk."""
        for block in blocks:
            os.pwrite(self.sums, _ABSENT, block * SUM_BYTES)
        for begin, end in runs(blocks):
            _punch(self._data, begin * BLOCK_BYTES, (end - begin) * BLOCK_BYTES)

    def present(self) -> list[int]:
        """The blocks that have a sum."""
        count = num_blocks(self._size)
        kept = os.pread(self.sums, count * SUM_BYTES, 0)
        return [number for number in range(count) if _sum_of(kept, number) not in (b"", _ABSENT)]

    def _fill(self, offset: int, view: memoryview) -> None:
        """A file that has become shorter leaves the rest as it is: it does not have its sum then."""
        filled = 0
        while filled < len(view):
            count = os.preadv(self._data, [view[filled:]], offset + filled)
            if count == 0:
                return
            filled += count


def runs(blocks: Sequence[int] | range) -> Iterator[tuple[int, int]]:
    """[begin, end) of each run of blocks that follow each other."""
    begin = end = None
    for block in blocks:
        if begin is not None and block == end:
            end += 1
            continue
        if begin is not None and end is not None:
            yield begin, end
        begin, end = block, block + 1
    if begin is not None and end is not None:
        yield begin, end


def block_sums(view: memoryview) -> bytes:
    """Of each block of what begins with one."""
    return b"".join(hashlib.sha256(_block(view, number)).digest() for number in range(num_blocks(len(view))))


def _sum_of(sums: bytes, number: int) -> bytes:
    return sums[number * SUM_BYTES : (number + 1) * SUM_BYTES]


def _block(view: memoryview, number: int) -> memoryview:
    return view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def _write_all(descriptor: int, view: memoryview, offset: int) -> None:
    written = 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)


def _punch(descriptor: int, offset: int, size: int) -> None:
    """On a file system without holes the whole file goes: what is read of it has no sum, and is fetched."""
    arguments = (ctypes.c_int64(offset), ctypes.c_int64(size))
    if _LIBC.fallocate(descriptor, _KEEP_SIZE | _PUNCH_HOLE, *arguments) == 0:
        return
    error = ctypes.get_errno()
    if error not in (errno.EOPNOTSUPP, errno.ENOSYS):
        raise OSError(error, os.strerror(error))
    whole = os.fstat(descriptor).st_size
    os.ftruncate(descriptor, 0)
    os.ftruncate(descriptor, whole)
