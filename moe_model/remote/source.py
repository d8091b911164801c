"""Where the bytes of a mirror come from: an object store, a server, another machine of the cluster."""

from collections.abc import Sequence
from typing import Protocol

from moe_model.halt import Halt

Range = tuple[int, int]


class RangeSource(Protocol):
    """Any thread may read, several at a time. `where` is for messages, without secrets."""

    @property
    def where(self) -> str: ...
    def read(self, name: str, ranges: Sequence[Range], halt: Halt) -> Sequence[bytes]:
        """The bytes [begin, end) of a file for each of the ranges, all of them.

        Within a deadline of its own. Raises CheckpointError naming the source and the file, also for one that
        is no longer what was listed; HaltedError soon after `halt` was set.
        """


class KnownSums(Protocol):
    """The SHA-256 of blocks, from an author of the checkpoint who has seen all of it."""

    def of(self, name: str, first: int, count: int) -> bytes | None:
        """Those of `count` blocks of a file, one after the other; None where they are not known."""
