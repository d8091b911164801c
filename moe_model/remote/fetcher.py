"""Fetches runs of blocks from a source: in ranges, at a limited rate, and checked where sums are known."""

import threading
from collections.abc import Iterator
from typing import NamedTuple

from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.block_file import block_sums
from moe_model.remote.listing import BLOCK_BYTES, SUM_BYTES
from moe_model.remote.source import KnownSums, Range, RangeSource
from moe_model.remote.token_bucket import TokenBucket

# What is asked for as one range, and how many at once: a store gives each connection a part of its rate.
_RANGE_BYTES, _RANGES_AT_ONCE = 16 * BLOCK_BYTES, 4
# With a limit, as many bytes are asked for at once as it allows in so many seconds.
_LIMITED_SECONDS = 0.1


class Fetched(NamedTuple):
    """Blocks from `first` on, and their sums."""

    first: int
    view: memoryview
    sums: bytes


class Fetcher:
    """Any thread may fetch. `num_bytes`: what has come so far."""

    def __init__(self, source: RangeSource, sums: KnownSums | None, bucket: TokenBucket, halt: Halt) -> None:
        self._source, self.sums, self.bucket, self.halt = source, sums, bucket, halt
        self._lock, self.num_bytes = threading.Lock(), 0

    @property
    def where(self) -> str:
        return self._source.where

    def known(self, name: str, first: int, count: int) -> bytes | None:
        return None if self.sums is None else self.sums.of(name, first, count)

    def fetch(self, name: str, first: int, view: memoryview) -> Iterator[Fetched]:
        """Fills `view` with the blocks from `first` on; yields each part of it as it has come. Raises
        CheckpointError, HaltedError."""
        done = 0
        while done < len(view):
            ranges = self._next_ranges(first * BLOCK_BYTES + done, first * BLOCK_BYTES + len(view))
            size = ranges[-1][1] - ranges[0][0]
            self.bucket.take(size, self.halt)
            part = view[done : done + size]
            self._read(name, ranges, part)
            sums = block_sums(part)
            self._check(name, first + done // BLOCK_BYTES, sums)
            yield Fetched(first + done // BLOCK_BYTES, part, sums)
            done += size

    def _next_ranges(self, begin: int, end: int) -> list[Range]:
        """Some that follow each other, of whole blocks."""
        rate, at_once, size = self.bucket.bytes_per_second, _RANGES_AT_ONCE, _RANGE_BYTES
        if rate is not None:
            at_once, size = 1, min(size, max(1, int(rate * _LIMITED_SECONDS) // BLOCK_BYTES) * BLOCK_BYTES)
        starts = range(begin, min(end, begin + at_once * size), size)
        return [(start, min(start + size, end)) for start in starts]

    def _read(self, name: str, ranges: list[Range], view: memoryview) -> None:
        filled = 0
        for (start, end), data in zip(ranges, self._source.read(name, ranges, self.halt), strict=True):
            if len(data) != end - start:
                raise CheckpointError(f"{self.where}: {name}: sends {len(data)} of {end - start} bytes")
            view[filled : filled + len(data)] = data
            filled += len(data)
            with self._lock:
                self.num_bytes += len(data)

    def _check(self, name: str, first: int, sums: bytes) -> None:
        known = self.known(name, first, len(sums) // SUM_BYTES)
        if known is not None and known != sums:
            wrong = next(i for i in range(len(sums)) if known[i] != sums[i]) // SUM_BYTES
            begin = (first + wrong) * BLOCK_BYTES
            raise CheckpointError(
                f"{self.where}: {name}: the bytes from {begin} on do not have the sum that they "
                "should have: the file has changed, or was damaged on its way"
            )
