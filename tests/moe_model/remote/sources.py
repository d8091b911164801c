"""Sources of bytes that tests control, and what a mirror shall equal."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from moe_model.errors import CheckpointError
from moe_model.halt import Halt
from moe_model.remote.cache import CacheFolder
from moe_model.remote.listing import Listing, RemoteFile
from moe_model.remote.mirror import Mirror, open_mirror
from moe_model.remote.source import KnownSums, Range
from moe_model.remote.token_bucket import TokenBucket

KEY = "a-key-of-a-test"


class MemorySource:
    """Counts what it is asked for."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.where, self.files = "memory", dict(files)
        self.asked: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()
        self.is_down = False

    @property
    def num_bytes(self) -> int:
        return sum(end - begin for _, begin, end in self.asked)

    def read(self, name: str, ranges: Sequence[Range], halt: Halt) -> Sequence[bytes]:
        halt.check()
        if self.is_down:
            raise CheckpointError(f"{self.where}: {name}: is down")
        with self._lock:
            self.asked += [(name, begin, end) for begin, end in ranges]
        return [self.files[name][begin:end] for begin, end in ranges]


def listing_of(files: Mapping[str, bytes]) -> Listing:
    return Listing({name: RemoteFile(len(data)) for name, data in files.items()})


def mirror_of(
    source: MemorySource,
    cache: Path | CacheFolder,
    *,
    sums: KnownSums | None = None,
    bucket: TokenBucket | None = None,
    halt: Halt | None = None,
) -> Mirror:
    folder = cache if isinstance(cache, CacheFolder) else CacheFolder(cache, max_bytes=1 << 40)
    return open_mirror(
        KEY,
        listing_of(source.files),
        source,
        folder,
        name="a model",
        location="memory://a-model",
        sums=sums,
        bucket=bucket,
        halt=halt,
    )
