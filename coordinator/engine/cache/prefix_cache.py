"""PrefixCache: lets sequences share the blocks of a common beginning. Moves keys and block ids only.

Only whole blocks are shared, never the one that holds the last token: its logits are needed. Of layers with
a window it is enough that the blocks are there that the next tokens look at. A context that has slid shares
nothing, for its positions will never come again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.engine.cache.block_pools import BlockPools
from coordinator.engine.core.sequence import Sequence


@dataclass(slots=True)
class _Entry:
    """What the cache knows of a running sequence: its remembered blocks, and the keys it will compute."""

    num_remembered: int
    announced: set[bytes] = field(default_factory=set)


class PrefixCache:
    """Finds, announces and remembers blocks by what they contain. Counts tokens."""

    def __init__(self, pools: BlockPools, *, enabled: bool = True) -> None:
        self.num_queries = 0
        self.num_hits = 0
        self._pools = pools
        self._block_size = pools.block_size
        self._enabled = enabled
        self._entries: dict[int, _Entry] = {}
        # Blocks that a running sequence is about to compute, and which sequence that is.
        self._coming: dict[bytes, int] = {}

    def is_coming(self, sequence: Sequence) -> bool:
        """Whether the first block it would have to compute is being computed by another."""
        if not self._coming or not self._reads(sequence):
            return False
        keys = self._shareable(sequence)
        num_found = self._pools.num_found(keys)
        return num_found < len(keys) and keys[num_found] in self._coming

    def attach(self, sequence: Sequence) -> bool:
        """Shares what is remembered of the sequence's beginning, and reserves for the rest; False when it
        does not fit."""
        reads = self._reads(sequence)
        keys = self._shareable(sequence)
        num_found = self._pools.num_found(keys) if reads else 0
        if not self._pools.admit(sequence, keys[:num_found]):
            return False
        sequence.num_computed = num_found * self._block_size
        if sequence.num_cached is None:
            # Only the first time: a sequence that comes back after it gave way is no new question.
            sequence.num_cached = sequence.num_computed
            if reads:
                self.num_queries += sequence.context_len
                self.num_hits += sequence.num_computed
        self._entries[sequence.key] = _Entry(num_found, self._announce(sequence.key, keys[num_found:]))
        return True

    def remember(self, sequence: Sequence) -> None:
        """Lets others find the full blocks that are now computed."""
        entry = self._entries.get(sequence.key)
        num_full = sequence.num_computed // self._block_size
        if entry is None or num_full <= entry.num_remembered or not self._is_cacheable(sequence):
            return
        keys = sequence.block_keys(entry.num_remembered, num_full)
        self._pools.remember(sequence, entry.num_remembered, keys)
        self._withdraw(sequence.key, keys)
        entry.announced.difference_update(keys)
        entry.num_remembered = num_full

    def detach(self, sequence: Sequence) -> None:
        """For a sequence that gives its blocks back; nothing happens when it has none."""
        entry = self._entries.pop(sequence.key, None)
        if entry is not None:
            self._withdraw(sequence.key, entry.announced)

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises AssertionError when a sequence that does not run is expected to compute something."""
        keys = {sequence.key for sequence in running}
        assert self._entries.keys() <= keys, "the cache knows a sequence that does not run"
        assert set(self._coming.values()) <= keys, "a block is coming from no sequence"

    def _is_cacheable(self, sequence: Sequence) -> bool:
        return self._enabled and sequence.window_start == 0

    def _reads(self, sequence: Sequence) -> bool:
        return self._is_cacheable(sequence) and sequence.reads_cache

    def _shareable(self, sequence: Sequence) -> list[bytes]:
        """Keys of the full blocks that do not hold the last token."""
        if not self._is_cacheable(sequence):
            return []
        return sequence.block_keys(0, (sequence.context_len - 1) // self._block_size)

    def _announce(self, owner: int, keys: Iterable[bytes]) -> set[bytes]:
        new = {key for key in keys if key not in self._coming}
        self._coming.update(dict.fromkeys(new, owner))
        return new

    def _withdraw(self, owner: int, keys: Iterable[bytes]) -> None:
        for key in keys:
            if self._coming.get(key) == owner:
                del self._coming[key]
