"""Which blocks of the KV cache are free. Integers only; knows no tensors and no requests."""

from collections.abc import Iterable


class BlockAllocator:
    """Hands out block ids 1 .. num_blocks. Block 0 belongs to nobody and stays zero for padding."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks, 0, -1))
        self._used: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return len(self._used)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks; the caller has checked `num_free`."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        blocks = [self._free.pop() for _ in range(count)]
        self._used.update(blocks)
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Gives blocks back. Freeing a block twice is our bug and raises AssertionError."""
        for block in blocks:
            assert block in self._used, f"block {block} is not in use"
            self._used.remove(block)
            self._free.append(block)

    def check_integrity(self, owned: Iterable[Iterable[int]] = ()) -> None:
        """Raises AssertionError unless every block is free or owned by exactly one of `owned`."""
        in_use = [block for blocks in owned for block in blocks]
        assert len(in_use) == len(set(in_use)), "a block has two owners"
        assert set(in_use) == self._used, "a block is in use without an owner, or owned while free"
        assert sorted(in_use + self._free) == list(range(1, self.num_blocks + 1)), "blocks lost or doubled"
