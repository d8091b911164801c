"""A folder whose files are elsewhere: their bytes are fetched when they are read, checked, and kept.

`open_mirror` is the way in, for whatever source. `Mirror.path` is a folder that readers of checkpoints take
as any other; they reach its bytes by `moe_model/files/mirrored.py`.
"""

from contextlib import ExitStack

from moe_model.checkpoint.reader import OnBytes
from moe_model.errors import CheckpointError
from moe_model.files.mirrored import announce, withdraw
from moe_model.halt import Halt
from moe_model.remote.block_sums import KnownBlockSums
from moe_model.remote.cache import CacheFolder, Held
from moe_model.remote.fetcher import Fetcher
from moe_model.remote.listing import BLOCK_SUMS, Listing
from moe_model.remote.mirror_file import MirrorFile
from moe_model.remote.source import KnownSums, RangeSource
from moe_model.remote.token_bucket import TokenBucket


def open_mirror(
    key: str,
    listing: Listing,
    source: RangeSource,
    cache: CacheFolder,
    *,
    name: str,
    location: str,
    sums: KnownSums | None = None,
    bucket: TokenBucket | None = None,
    halt: Halt | None = None,
    on_bytes: OnBytes | None = None,
) -> "Mirror":
    """A mirror of what `listing` has, with its small files whole and its tensors on demand.

    `key`: its folder in the cache, another one for other content; `name`: of the model; `location`: what
    another process opens it by. `bucket` limits what is fetched, `on_bytes` is told of the small files.
    `sums` None: those of its own `block-sums`, if it has any. Raises CheckpointError, HaltedError.
    """
    fetcher = Fetcher(source, sums, bucket or TokenBucket(), halt or Halt())
    mirror = Mirror(listing, cache, cache.hold(key), fetcher, name=name, location=location)
    with ExitStack() as stack:
        stack.callback(mirror.close)
        mirror.complete(on_bytes)
        if sums is None and BLOCK_SUMS in listing.files:
            fetcher.sums = KnownBlockSums.open(mirror.path / BLOCK_SUMS, listing)
        stack.pop_all()
    announce(mirror)
    return mirror


class Mirror:
    """A MirroredFolder. Any thread may read it."""

    def __init__(
        self, listing: Listing, cache: CacheFolder, held: Held, fetcher: Fetcher, *, name: str, location: str
    ) -> None:
        self.path, self.name, self.location = held.files, name, location
        self.listing, self._cache, self._held, self._fetcher = listing, cache, held, fetcher
        self._is_closed = False

    @property
    def num_fetched(self) -> int:
        """Bytes that this process has fetched for it."""
        return self._fetcher.num_bytes

    def limit(self, bytes_per_second: float | None) -> None:
        """How fast it may fetch, from now on; None: as fast as it goes. Raises ConfigError."""
        self._fetcher.bucket.limit(bytes_per_second)

    def complete(self, on_bytes: OnBytes | None = None) -> None:
        """Makes all files, and fetches the small ones. Raises CheckpointError, HaltedError."""
        for name, file in self.listing.files.items():
            try:
                self._held.block_file(name, file.size).create()
            except OSError as error:
                raise self._cache.unusable(error) from None
        small = [name for name in self.listing.files if not self.listing.is_on_demand(name)]
        done, total = 0, sum(self.listing.files[name].size for name in small)
        for name in small:
            whole = self._file(name, must_keep=True)
            self._complete(name, whole)
            done += whole.size
            if on_bytes is not None:
                on_bytes(done, total)

    def _complete(self, name: str, whole: MirrorFile) -> None:
        wanted = whole.digest
        if whole.sha256() == wanted or wanted is None:
            return
        # An earlier process may have been ended before it knew.
        whole.forget()
        if whole.sha256() != wanted:
            whole.forget()
            raise CheckpointError(f"{self._fetcher.where}: {name}: SHA-256 is not the one that was listed")

    def file(self, name: str) -> MirrorFile | None:
        is_here = name in self.listing.files and self.listing.is_on_demand(name)
        return self._file(name) if is_here else None

    def close(self) -> None:
        """What is kept of it may be evicted from now on. Idempotent."""
        withdraw(self)
        if not self._is_closed:
            self._is_closed = True
            self._held.release()

    def _file(self, name: str, *, must_keep: bool = False) -> MirrorFile:
        file = self.listing.files[name]
        blocks = self._held.block_file(name, file.size)
        return MirrorFile(name, file, blocks, self._fetcher, self._cache, must_keep=must_keep)
