"""What a machine without the files of a checkpoint is offered, and what it offers to others.

Who asks whom is the system's that runs the workers; here it is only a source of ranges.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.folder_source import FolderSource, listing_of
from moe_model.remote.listing import BLOCK_BYTES, Listing
from moe_model.remote.mirror import Mirror, open_mirror
from moe_model.remote.settings import cache_of
from moe_model.remote.source import Range, RangeSource
from moe_model.remote.token_bucket import TokenBucket


@dataclass(frozen=True, slots=True)
class Offer:
    """The files of the checkpoint `name`, as other machines have them, for workers whose machine has not."""

    name: str
    listing: Listing


def open_offer(offer: Offer, location: str, source: RangeSource) -> Mirror:
    """A folder of this machine's cache with these files, which are fetched when they are read. Raises
    CheckpointError, ConfigError."""
    listing, cache = offer.listing, cache_of()
    return open_mirror(listing.key(), listing, source, cache, name=offer.name, location=location)


class Lender:
    """Gives others what this machine has of a checkpoint's files, and fetches nothing for it. Any thread."""

    def __init__(self, checkpoint: Checkpoint, mirror: Mirror | None, bytes_per_second: float | None) -> None:
        """`mirror`: what the checkpoint is read from, where its files are not all here."""
        listing = listing_of(checkpoint) if mirror is None else mirror.listing
        self._names = frozenset(listing.files)
        self._mirror, self._source = mirror, FolderSource(checkpoint.path)
        self._bucket = TokenBucket(bytes_per_second)

    def lend(self, name: str, ranges: Sequence[Range], *, is_urgent: bool) -> list[bytes] | None:
        """The bytes [begin, end) for each range; None where they are not all here. One that is not urgent
        waits for its turn."""
        if name not in self._names or not all(self._has(name, begin, end) for begin, end in ranges):
            return None
        halt = Halt()
        if not is_urgent:
            self._bucket.take(sum(end - begin for begin, end in ranges), halt)
        with suppress(CheckpointError):
            return list(self._source.read(name, ranges, halt))
        return None

    def _has(self, name: str, begin: int, end: int) -> bool:
        file = None if self._mirror is None else self._mirror.file(name)
        if file is None:
            return True
        present = set(file.present())
        return all(block in present for block in range(begin // BLOCK_BYTES, -(-end // BLOCK_BYTES)))
