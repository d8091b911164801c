"""BlockAllocator: nothing lost, nothing given twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.cache.block_allocator import BlockAllocator


@given(st.integers(0, 12), st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=40))
def test_any_history_keeps_every_block(num_blocks: int, history: list[tuple[bool, int]]) -> None:
    allocator = BlockAllocator(num_blocks)
    owned: list[list[int]] = []
    for takes, number in history:
        if takes and number <= allocator.num_free:
            owned.append(allocator.allocate(number))
        elif not takes and owned:
            allocator.free(owned.pop(number % len(owned)))
        allocator.check_integrity(owned)
        assert allocator.num_used == sum(map(len, owned))
        assert allocator.num_free + allocator.num_used == num_blocks
        assert all(1 <= block <= num_blocks for blocks in owned for block in blocks), "block 0 is nobody's"
    for blocks in owned:
        allocator.free(blocks)
    allocator.check_integrity()
    assert allocator.num_free == num_blocks


def test_taking_more_than_there_is_is_our_bug() -> None:
    allocator = BlockAllocator(2)
    with pytest.raises(AssertionError, match="3 blocks wanted, 2 free"):
        allocator.allocate(3)
    allocator.check_integrity()


@pytest.mark.parametrize("block", [0, 2, 99])
def test_freeing_what_is_not_in_use_is_our_bug(block: int) -> None:
    allocator = BlockAllocator(3)
    taken = allocator.allocate(1)
    assert taken == [1]
    with pytest.raises(AssertionError, match=f"block {block} is not in use"):
        allocator.free([block])


def test_integrity_sees_lost_shared_and_stolen_blocks() -> None:
    allocator = BlockAllocator(4)
    mine, yours = allocator.allocate(2), allocator.allocate(1)
    allocator.check_integrity([mine, yours])
    for wrong in ([mine], [mine, yours, yours], [mine, yours, [4]]):
        with pytest.raises(AssertionError):
            allocator.check_integrity(wrong)


def test_blocks_that_were_never_used_take_nothing() -> None:
    allocator = BlockAllocator(1 << 40)
    assert allocator.allocate(3) == [1, 2, 3]
    allocator.free([2])
    assert allocator.allocate(2) == [2, 4]
    assert allocator.num_free == (1 << 40) - 4
