"""Which blocks of the KV cache are free, shared or remembered. Integers and keys only; knows no tensors.

    free ----allocate----> used (1 owner or more) ----free----> free, or remembered where it has a key
      ^                      ^                                      |           |
      |                      +---------------share------------------+           |
      +-----------------evicted by allocate, oldest first----------<------------+

A key names the tokens of a block and all that stand before it, so equal keys mean equal contents.
"""

from collections import Counter
from collections.abc import Iterable


class BlockAllocator:
    """Hands out block ids 1 .. num_blocks. Block 0 belongs to no sequence and stays zero for padding."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        # Blocks up to this one have been handed out before: there is no list of the others, which may be
        # millions.
        self._num_touched = 0
        self._free: list[int] = []
        self._owners: dict[int, int] = {}
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        # Remembered blocks without an owner, the one that was freed first in front.
        self._idle: dict[int, None] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated, remembered ones included."""
        return self.num_blocks - self._num_touched + len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return len(self._owners)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks; the caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        blocks = [self._next() for _ in range(count)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The remembered blocks of the first keys, up to the first that is unknown."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def knows(self, key: bytes) -> bool:
        """Whether a block is remembered by this key."""
        return key in self._block_of

    def num_idle(self, blocks: Iterable[int]) -> int:
        """How many of the blocks have no owner: sharing them takes as many free ones."""
        return sum(block in self._idle for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Adds an owner to blocks that `find` has returned."""
        for block in blocks:
            self._idle.pop(block, None)
            self._owners[block] = self._owners.get(block, 0) + 1

    def remember(self, block: int, key: bytes) -> None:
        """Lets others find a block whose contents are written. The first block of a key stays its block."""
        assert block in self._owners, f"block {block} is not in use"
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Makes blocks unfindable; sequences that share them keep them."""
        for block in blocks:
            if block in self._key_of:
                del self._block_of[self._key_of.pop(block)]
                if block in self._idle:
                    del self._idle[block]
                    self._free.append(block)

    def free(self, blocks: Iterable[int]) -> None:
        """Gives blocks back. Freeing a block more often than it has owners raises AssertionError."""
        for block in blocks:
            assert block in self._owners, f"block {block} is not in use"
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            del self._owners[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._free.append(block)

    def check_integrity(self, owned: Iterable[Iterable[int]] = ()) -> None:
        """Raises AssertionError unless every block is free, remembered, or used by as many of `owned` as
        it has owners."""
        owners = Counter(block for blocks in owned for block in blocks)
        assert owners == Counter(self._owners), "a block's owners are not those that hold it"
        everything = sorted([*self._owners, *self._free, *self._idle])
        assert everything == list(range(1, self._num_touched + 1)), "blocks lost or doubled"
        assert self._num_touched <= self.num_blocks, "more blocks than there are"
        assert {block: key for key, block in self._block_of.items()} == self._key_of, "a key is misplaced"
        assert not any(block in self._key_of for block in self._free), "a free block has a key"

    def _next(self) -> int:
        """One that is free, else one that was never used, else the one that was remembered longest."""
        if self._free:
            return self._free.pop()
        if self._num_touched < self.num_blocks:
            self._num_touched += 1
            return self._num_touched
        block = next(iter(self._idle))
        del self._idle[block]
        del self._block_of[self._key_of.pop(block)]
        return block
