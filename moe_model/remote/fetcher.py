"""Fetches runs of blocks from a source: in ranges, at a limited rate, and checked where sums are known."""

import threading
from collections.abc import Iterator

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

    def fetch(self, name: str, first: int, view: memoryview) -> bytes:
        """Fills `view` with the blocks from `first` on; returns their sums. Raises CheckpointError,
        HaltedError."""
        begin = first * BLOCK_BYTES
        for ranges in self._batches(begin, begin + len(view)):
            self.bucket.take(sum(end - start for start, end in ranges), self.halt)
            for (start, end), data in zip(ranges, self._source.read(name, ranges, self.halt), strict=True):
                if len(data) != end - start:
                    raise CheckpointError(
                        f"{self._source.where}: {name}: sends {len(data)} of {end - start} bytes"
                    )
                view[start - begin : end - begin] = data
                with self._lock:
                    self.num_bytes += len(data)
        sums = block_sums(view)
        self._check(name, first, sums)
        return sums

    def _batches(self, begin: int, end: int) -> Iterator[list[Range]]:
        rate = self.bucket.bytes_per_second
        size, at_once = _RANGE_BYTES, _RANGES_AT_ONCE
        if rate is not None:
            size, at_once = min(size, max(BLOCK_BYTES, int(rate * _LIMITED_SECONDS))), 1
        starts = range(begin, end, size)
        for number in range(0, len(starts), at_once):
            yield [(start, min(start + size, end)) for start in starts[number : number + at_once]]

    def _check(self, name: str, first: int, sums: bytes) -> None:
        known = self.known(name, first, len(sums) // SUM_BYTES)
        if known is not None and known != sums:
            wrong = next(
                i
                for i in range(0, len(sums), SUM_BYTES)
                if known[i : i + SUM_BYTES] != sums[i : i + SUM_BYTES]
            )
            begin = (first + wrong // SUM_BYTES) * BLOCK_BYTES
            raise CheckpointError(
                f"{self._source.where}: {name}: the bytes from {begin} on do not have the sum that they "
                "should have: the file has changed, or was damaged on its way"
            )
