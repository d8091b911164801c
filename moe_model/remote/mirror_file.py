"""One file of a mirror, read from the cache where it is there with its sums, else from the source."""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress

from moe_model.errors import CheckpointError
from moe_model.files.whole_file import reason
from moe_model.remote.block_file import BlockFile, OpenBlocks, runs
from moe_model.remote.cache import CacheFolder
from moe_model.remote.fetcher import Fetched, Fetcher
from moe_model.remote.listing import BLOCK_BYTES, SUM_BYTES, RemoteFile, num_blocks
from moe_model.remote.range_lock import locked_range

# What a read has in memory beside its result.
_WINDOW_BYTES = 64 * BLOCK_BYTES
# Of blocks that another process or thread fetches, the next one is waited for so long; then all are fetched
# here as well.
_LOCK_SECONDS = 60.0


class MirrorFile:
    """A MirroredFile. Any thread may read it. `must_keep`: bytes that cannot be kept are an error, for others
    read them from the disk."""

    def __init__(
        self,
        name: str,
        file: RemoteFile,
        blocks: BlockFile,
        fetcher: Fetcher,
        cache: CacheFolder,
        *,
        must_keep: bool = False,
    ) -> None:
        self.size, self.digest = file.size, file.digest
        self._name, self._blocks, self._fetcher, self._cache = name, blocks, fetcher, cache
        self._must_keep = must_keep

    def read_into(self, offset: int, view: memoryview) -> None:
        """Raises CheckpointError, HaltedError."""
        end = offset + len(view)
        if end > self.size:
            raise CheckpointError(f"{self._blocks.data}: has {self.size} bytes, {end} are wanted")
        if not view:
            return
        start = offset // BLOCK_BYTES * BLOCK_BYTES
        for begin in range(start, end, _WINDOW_BYTES):
            stop = min(begin + _WINDOW_BYTES, -(-end // BLOCK_BYTES) * BLOCK_BYTES, self.size)
            window = memoryview(bytearray(stop - begin))
            self._fill(begin // BLOCK_BYTES, window)
            first, last = max(begin, offset), min(stop, end)
            view[first - offset : last - offset] = window[first - begin : last - begin]

    def sha256(self) -> str:
        """Of all of it; all of it is here then, if it must be. Raises CheckpointError, HaltedError."""
        found = hashlib.sha256()
        for begin in range(0, self.size, _WINDOW_BYTES):
            window = memoryview(bytearray(min(_WINDOW_BYTES, self.size - begin)))
            self._fill(begin // BLOCK_BYTES, window)
            found.update(window)
        return found.hexdigest()

    def present(self) -> list[int]:
        """The blocks that are here, as far as their sums say."""
        with suppress(OSError), self._blocks.opened() as blocks:
            return blocks.present()
        return []

    def forget(self) -> None:
        with suppress(OSError), self._blocks.opened() as blocks:
            blocks.drop(blocks.present())

    def _fill(self, first: int, window: memoryview) -> None:
        try:
            with self._blocks.opened() as blocks:
                self._fill_from(blocks, first, window)
        except OSError as error:
            # Not only a full disk: a user may have removed the cache, or the disk fails.
            if self._must_keep:
                raise self._cache.unusable(error) from None
            self._cache.warn(reason(error))
            for _ in self._fetcher.fetch(self._name, first, window):
                """It is in the window."""

    def _fill_from(self, blocks: OpenBlocks, first: int, window: memoryview) -> None:
        known = self._fetcher.known(self._name, first, num_blocks(len(window)))
        os.utime(blocks.sums)
        for begin, end in runs(blocks.load(first, window, known)):
            part = window[(begin - first) * BLOCK_BYTES : (end - first) * BLOCK_BYTES]
            of_part = known and known[(begin - first) * SUM_BYTES : (end - first) * SUM_BYTES]
            self._fetch_once(blocks, begin, part, of_part)

    def _fetch_once(self, blocks: OpenBlocks, first: int, part: memoryview, known: bytes | None) -> None:
        """What others are fetching is waited for, as long as they get on with it."""
        span = first * SUM_BYTES, num_blocks(len(part)) * SUM_BYTES
        num_missing = num_blocks(len(part))
        while True:
            with locked_range(blocks.sums, *span, _LOCK_SECONDS, self._fetcher.halt) as got:
                missing = blocks.load(first, part, known)
                if got or len(missing) >= num_missing:
                    self._fetch(blocks, first, part, missing)
                    return
                num_missing = len(missing)

    def _fetch(self, blocks: OpenBlocks, first: int, part: memoryview, missing: Sequence[int]) -> None:
        for begin, end in runs(missing):
            view = part[(begin - first) * BLOCK_BYTES : (end - first) * BLOCK_BYTES]
            for fetched in self._fetcher.fetch(self._name, begin, view):
                if self._cache.make_room(len(fetched.view)):
                    self._keep(blocks, fetched)
                elif self._must_keep:
                    raise self._cache.no_room(self._name)

    def _keep(self, blocks: OpenBlocks, fetched: Fetched) -> None:
        try:
            blocks.keep(*fetched)
        except OSError as error:
            if self._must_keep:
                raise self._cache.unusable(error) from None
            self._cache.warn(reason(error))
