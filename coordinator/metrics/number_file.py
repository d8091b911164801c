"""Numbers of one process in a file that others read while it counts: no lock, and nothing to be asked.

One process owns a file and writes; what it has counted stays when it dies. Each series is appended once and
never moves; its numbers are doubles, which a processor writes whole.

16 bytes: a mark, and where the next series begins; then series: the lengths of key and numbers, a checksum of
lengths and key, the key as JSON, the numbers, all aligned to 8 bytes. An ARM processor may show others where
a series ends before it shows what is in it: the checksum tells them when all of it is there.
"""

import json
import logging
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

from coordinator.metrics.store import Key, Values, zeros

logger = logging.getLogger(__name__)

FILE_BYTES = 4 << 20
# What is given back when its process dies; all else is kept.
HELD = "held_"

_MARK = int.from_bytes(b"numbers2", sys.byteorder)
_HEAD_BYTES = 16
_LENGTHS = struct.Struct("<II")
# Lengths, checksum, and what fills them up.
_FRONT = struct.Struct("<IIIxxxx")


class NumberFile:
    """A file of numbers, which is made if it is not there. Used on one thread; only its owner allocates."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        try:
            # A page that the disk has no room for would end the process where it is written.
            os.posix_fallocate(file, 0, FILE_BYTES)
            self._bytes = mmap.mmap(file, FILE_BYTES)
        finally:
            os.close(file)
        self._view = memoryview(self._bytes)
        # Each of the two is written whole. `struct` puts zeros there first: a process that is killed then
        # would leave a file without a mark, so without all that was counted.
        self._head = self._view[:_HEAD_BYTES].cast("Q")
        self._places: dict[Key, memoryview[float]] = {}
        self._seen = _HEAD_BYTES

    def allocate(self, key: Key, count: int) -> Values:
        """The numbers that are there under the key, else new ones, all 0. No other process sees those that a
        full file has no room for."""
        found = self.find(key)
        if found is not None and len(found) == count:
            return cast(Values, found)
        name = json.dumps(key).encode()
        start = self._seen + _FRONT.size
        numbers = start + -(-len(name) // 8) * 8
        end = numbers + 8 * count
        if end > FILE_BYTES:
            logger.warning(
                "%s is full: %s of this process is not counted with the others'", self._path, key[0]
            )
            return zeros(key, count)
        # What a writer that died has left behind the last series.
        self._view[start:end] = bytes(end - start)
        _FRONT.pack_into(self._bytes, self._seen, len(name), count, _checksum(name, count))
        self._view[start : start + len(name)] = name
        self._head[1] = end
        self._head[0] = _MARK
        return cast(Values, self.find(key))

    def find(self, key: Key) -> "memoryview[float] | None":
        """The numbers under a key, if there are some by now."""
        if key not in self._places:
            self._look()
        return self._places.get(key)

    def items(self) -> list[tuple[Key, Sequence[float]]]:
        """All series, with their numbers as they are now."""
        self._look()
        return [(key, numbers.tolist()) for key, numbers in self._places.items()]

    def release(self) -> None:
        """Sets to 0 what its process held."""
        self._look()
        for (name, _), numbers in self._places.items():
            if name.startswith(HELD):
                for place in range(len(numbers)):
                    numbers[place] = 0.0

    def _look(self) -> None:
        """Finds the series that have been appended since the last look."""
        mark, end = self._head
        if mark != _MARK:
            return
        for key, numbers in self._series(min(end, FILE_BYTES)):
            self._places[key] = numbers

    def _series(self, end: int) -> Iterator[tuple[Key, "memoryview[float]"]]:
        while self._seen < end:
            length, count, checksum = _FRONT.unpack_from(self._bytes, self._seen)
            start = self._seen + _FRONT.size
            numbers = start + -(-length // 8) * 8
            key = self._bytes[start : start + length]
            if checksum != _checksum(key, count):
                return
            name, labels = json.loads(key)
            self._seen = numbers + 8 * count
            yield (name, tuple(labels)), self._view[numbers : self._seen].cast("d")


def _checksum(key: bytes, count: int) -> int:
    """Of a key as JSON, and of how many numbers it has; of zeros it is not 0."""
    return zlib.crc32(key, zlib.crc32(_LENGTHS.pack(len(key), count)))
