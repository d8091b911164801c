"""BlockPools: what a sequence gets and gives back in all groups of layers at once."""

from collections.abc import Iterable
from collections.abc import Sequence as Seq

from coordinator.engine.cache.block_pool import WindowPool, pool_of
from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.cache.cache_sizes import CacheSizes
from coordinator.engine.core.sequence import Sequence


class BlockPools:
    """One pool for each group of the cache, in their order, as the tables of a sequence are."""

    def __init__(self, sizes: CacheSizes, max_step_tokens: int) -> None:
        self.block_size = sizes.block_size
        self._pools = [pool_of(size, sizes.block_size, max_step_tokens) for size in sizes.groups]
        pools = enumerate(self._pools)
        self._windowed = [(place, pool) for place, pool in pools if isinstance(pool, WindowPool)]
        self._allocators = [pool.allocator for pool in self._pools]

    @property
    def num_blocks(self) -> int:
        """Of all groups."""
        return sum(allocator.num_blocks for allocator in self._allocators)

    @property
    def num_free(self) -> int:
        """Of those, how many no sequence has."""
        return sum(allocator.num_free for allocator in self._allocators)

    @property
    def usage(self) -> float:
        """The part of the fullest group that is in use, in [0, 1]."""
        return max(pool.usage for pool in self._pools)

    @property
    def capacity_tokens(self) -> int | None:
        """The longest context that fits; None: any."""
        return min((n for pool in self._pools if (n := pool.capacity_tokens) is not None), default=None)

    def num_found(self, keys: Seq[bytes]) -> int:
        """How many of a context's first blocks need not be computed: all groups remember what the tokens
        after these look at."""
        found, before = len(keys), -1
        while found != before:
            before = found
            for pool in self._pools:
                found = pool.longest(keys[:found])
        return found

    def admit(self, sequence: Sequence, keys: Seq[bytes]) -> bool:
        """Gives a sequence the blocks of these keys, which are found, and reserves the rest; False when it
        does not fit."""
        if not sequence.tables:
            sequence.tables = tuple(BlockTable() for _ in self._pools)
        firsts = [pool.first_seen(len(keys) * self.block_size) for pool in self._pools]
        shared = [each.find(keys[first:]) for each, first in zip(self._allocators, firsts, strict=True)]
        each = list(zip(self._pools, sequence.tables, firsts, shared, strict=True))
        if not all(pool.fits(table, sequence.context_len, blocks) for pool, table, _, blocks in each):
            return False
        for pool, table, first, blocks in each:
            pool.allocator.share(blocks)
            table.begin(first, blocks)
            pool.reserve(table, sequence.context_len)
        sequence.num_reserved = self._in_blocks(sequence.context_len)
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Reserves for the context as it is now; False when it does not fit."""
        return self._reserve(sequence, sequence.context_len)

    def stretch(self, sequence: Sequence, num_more: int) -> int:
        """Reserves for as many tokens beyond its context, or for none that takes a block; for how many."""
        length = sequence.context_len
        fits = self._reserve(sequence, length + num_more)
        return num_more if fits else min(num_more, sequence.num_reserved - length)

    def shrink(self, running: Iterable[Sequence]) -> None:
        """Gives back what was reserved beyond their contexts."""
        for sequence in running:
            length = sequence.context_len
            if sequence.num_reserved - length >= self.block_size:
                for pool, table in zip(self._pools, sequence.tables, strict=True):
                    pool.shrink(table, length)
                sequence.num_reserved = self._in_blocks(length)

    def _reserve(self, sequence: Sequence, length: int) -> bool:
        if length <= sequence.num_reserved:
            return True
        each = list(zip(self._pools, sequence.tables, strict=True))
        if not all(pool.fits(table, length) for pool, table in each):
            return False
        for pool, table in each:
            pool.reserve(table, length)
        sequence.num_reserved = self._in_blocks(length)
        return True

    def trim(self, running: Iterable[Sequence]) -> None:
        """Gives back what no later token looks at."""
        for place, pool in self._windowed:
            for sequence in running:
                pool.trim(sequence.tables[place], sequence.num_computed)

    def place(self, sequence: Sequence, end: int) -> None:
        """Blocks for the tokens before position `end`."""
        for place, pool in self._windowed:
            pool.place(sequence.tables[place], end)

    def remember(self, sequence: Sequence, start: int, keys: Seq[bytes]) -> None:
        """Lets others find the blocks of these keys, from place `start` on, which have just been filled."""
        for allocator, table in zip(self._allocators, sequence.tables, strict=True):
            for place, key in enumerate(keys, start):
                allocator.remember(table.ids[place], key)

    def forget(self, sequence: Sequence) -> None:
        """Lets no other sequence find what it has."""
        for allocator, table in zip(self._allocators, sequence.tables, strict=True):
            allocator.forget(table.held)

    def release(self, sequence: Sequence) -> None:
        """Takes all back; nothing happens when it has nothing."""
        for pool, table in zip(self._pools, sequence.tables, strict=False):
            pool.release(table)
        sequence.num_reserved = 0

    def check_integrity(self, running: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Raises AssertionError when blocks are lost, shared without a key, or owned by one that waits."""
        running = list(running)
        for place, pool in enumerate(self._pools):
            pool.check_integrity([sequence.tables[place] for sequence in running])
        for sequence in waiting:
            owned = [len(table) + table.num_reserved for table in sequence.tables]
            assert not any(owned), "a waiting sequence owns blocks"

    def _in_blocks(self, context_len: int) -> int:
        """Positions of the blocks that a context begins."""
        return -(-context_len // self.block_size) * self.block_size
