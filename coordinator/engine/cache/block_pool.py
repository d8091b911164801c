"""The blocks of one group of layers, and how many of them a sequence has at any time.

`WholePool` is of layers that look at all of a context: a sequence gets blocks for all of it when it begins,
and when it has grown. `WindowPool` is of layers with a window: it only promises blocks then, gives them step
by step, and takes back what no later token looks at.
"""

from collections.abc import Sequence as Seq
from typing import Protocol

from coordinator.engine.cache.block_allocator import BlockAllocator
from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.cache.cache_sizes import GroupSize, step_blocks, window_blocks


class BlockPool(Protocol):
    """Tables are those of the sequences that run."""

    allocator: BlockAllocator

    @property
    def capacity_tokens(self) -> int | None:
        """The longest context that it can hold; None: any."""

    @property
    def usage(self) -> float:
        """The part in use, in [0, 1]; at 1 nothing else is admitted."""

    def first_seen(self, num_computed: int) -> int:
        """The place of the first block that the token after so many looks at."""

    def longest(self, keys: Seq[bytes]) -> int:
        """After how many of a context's first blocks all that the next token looks at is remembered."""

    def fits(self, table: BlockTable, context_len: int, shared: Seq[int] = ()) -> bool:
        """Whether `reserve` may be called. `shared` blocks will be in the table by then."""

    def reserve(self, table: BlockTable, context_len: int) -> None:
        """From now on a sequence lacks no blocks for a context of this length."""

    def shrink(self, table: BlockTable, context_len: int) -> None:
        """Takes back what `reserve` gave for a longer context."""

    def release(self, table: BlockTable) -> None:
        """Gives all back; nothing happens when there is nothing."""

    def check_integrity(self, tables: Seq[BlockTable]) -> None:
        """Raises AssertionError when blocks are lost, or are not those of these tables."""


class WholePool:
    """Of layers that look at all of a context."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.allocator = BlockAllocator(num_blocks)
        self._block_size = block_size

    @property
    def capacity_tokens(self) -> int | None:
        return self.allocator.num_blocks * self._block_size

    @property
    def usage(self) -> float:
        return 1 - self.allocator.num_free / self.allocator.num_blocks

    def first_seen(self, num_computed: int) -> int:
        return 0

    def longest(self, keys: Seq[bytes]) -> int:
        return len(self.allocator.find(keys))

    def fits(self, table: BlockTable, context_len: int, shared: Seq[int] = ()) -> bool:
        missing = self._missing(table, context_len) - len(shared) + self.allocator.num_idle(shared)
        return missing <= self.allocator.num_free

    def reserve(self, table: BlockTable, context_len: int) -> None:
        table.ids.extend(self.allocator.allocate(max(0, self._missing(table, context_len))))

    def shrink(self, table: BlockTable, context_len: int) -> None:
        self.allocator.free(table.cut(0, -(-context_len // self._block_size)))

    def release(self, table: BlockTable) -> None:
        # The end first: what stands at the beginning of a context is worth remembering longest.
        self.allocator.free(table.clear())

    def check_integrity(self, tables: Seq[BlockTable]) -> None:
        self.allocator.check_integrity(table.held for table in tables)

    def _missing(self, table: BlockTable, context_len: int) -> int:
        return -(-context_len // self._block_size) - len(table)


class WindowPool:
    """Of layers where a token looks at the last `window` tokens, itself included.

    What is promised to all sequences, and what one step needs beyond that, are never more than there is: so
    `place` finds its blocks however a step is cut.
    """

    def __init__(self, num_blocks: int, block_size: int, window: int, max_step_tokens: int) -> None:
        self.allocator = BlockAllocator(num_blocks)
        self._block_size = block_size
        self._window = window
        self._most = window_blocks(window, block_size)
        self._num_promisable = num_blocks - step_blocks(max_step_tokens, block_size)
        self._num_promised = 0
        assert self._num_promisable > 0, "not one block beside those of a step"

    @property
    def capacity_tokens(self) -> int | None:
        return None if self._num_promisable >= self._most else self._num_promisable * self._block_size

    @property
    def usage(self) -> float:
        return self._num_promised / self._num_promisable

    def first_seen(self, num_computed: int) -> int:
        return max(0, num_computed + 1 - self._window) // self._block_size

    def longest(self, keys: Seq[bytes]) -> int:
        end = len(keys)
        while end:
            seen = range(end - 1, self.first_seen(end * self._block_size) - 1, -1)
            unknown = next((place for place in seen if not self.allocator.knows(keys[place])), None)
            if unknown is None:
                return end
            end = unknown
        return 0

    def fits(self, table: BlockTable, context_len: int, shared: Seq[int] = ()) -> bool:
        """Shared blocks count as if they were its own."""
        wanted = self._wanted(context_len) - table.num_reserved
        return self._num_promised + wanted <= self._num_promisable

    def reserve(self, table: BlockTable, context_len: int) -> None:
        wanted = self._wanted(context_len)
        self._num_promised += wanted - table.num_reserved
        table.num_reserved = wanted

    def shrink(self, table: BlockTable, context_len: int) -> None:
        """Only the promise: `trim` takes the blocks."""
        self.reserve(table, context_len)

    def place(self, table: BlockTable, end: int) -> None:
        """Blocks for the tokens before position `end`."""
        table.ids.extend(self.allocator.allocate(max(0, -(-end // self._block_size) - len(table))))

    def trim(self, table: BlockTable, num_computed: int) -> None:
        """Gives back what is behind the window, and what a step that failed has taken and not filled."""
        end = -(-num_computed // self._block_size)
        self.allocator.free(table.cut(self.first_seen(num_computed), end))

    def release(self, table: BlockTable) -> None:
        self._num_promised -= table.num_reserved
        self.allocator.free(table.clear())

    def check_integrity(self, tables: Seq[BlockTable]) -> None:
        self.allocator.check_integrity(table.held for table in tables)
        assert self._num_promised == sum(table.num_reserved for table in tables), "promised to no sequence"
        assert self._num_promised <= self._num_promisable, "more is promised than there is"

    def _wanted(self, context_len: int) -> int:
        return min(self._most, -(-context_len // self._block_size))


def pool_of(size: GroupSize, block_size: int, max_step_tokens: int) -> BlockPool:
    """For one group."""
    if size.window is None:
        return WholePool(size.num_blocks, block_size)
    return WindowPool(size.num_blocks, block_size, size.window, max_step_tokens)
