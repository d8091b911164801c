"""How many blocks the cache has, group by group of the layers, and how many a budget of memory buys.

A group without a window keeps whole contexts. A group with one keeps of each sequence only what the next
tokens look back at, beside what a step writes before they do.
"""

from bisect import bisect_right
from dataclasses import dataclass

import torch

from moe_model.errors import ConfigError
from moe_model.layers.specs import CacheGroup, CacheSpec


@dataclass(frozen=True, slots=True)
class GroupSize:
    """`window` as `CacheGroup` has it; `num_blocks` are those of all sequences."""

    num_blocks: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """`groups` are in the order of the cache's spec; a block has `block_size` positions in each of them."""

    block_size: int
    groups: tuple[GroupSize, ...]

    def capacity_tokens(self, max_context: int) -> int:
        """Tokens that one sequence can have: groups with a window hold those of any, or a whole context."""
        whole = [size.num_blocks * self.block_size for size in self.groups if size.window is None]
        return min(whole, default=max_context)


@dataclass(frozen=True, slots=True)
class Demand:
    """What decides how much a cache can be of use for. Counts tokens, but for the sequences."""

    max_context: int
    max_num_seqs: int
    max_step_tokens: int


def window_blocks(window: int, block_size: int) -> int:
    """Most blocks that a sequence holds for a window, but for `step_blocks`.

    A chunk of n tokens needs window - 1 + n positions in a row, which lie in at most
    ⌈(window - 1) / size⌉ + ⌈(n - 1) / size⌉ + 1 blocks; the second term is at most ⌊(n - 1) / size⌋ + 1.
    """
    return -(-(window - 1) // block_size) + 2


def step_blocks(max_step_tokens: int, block_size: int) -> int:
    """Most blocks that the chunks of one step take together beyond those: the sum of ⌊(n - 1) / size⌋."""
    return max_step_tokens // block_size


def block_bytes(spec: CacheSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers and parts."""
    return sum(_group_bytes(group, block_size, dtype) for group in spec.groups)


def cache_bytes(spec: CacheSpec, sizes: CacheSizes, dtype: torch.dtype) -> int:
    """Bytes of all blocks."""
    sized = zip(spec.groups, sizes.groups, strict=True)
    return sum(size.num_blocks * _group_bytes(group, sizes.block_size, dtype) for group, size in sized)


def sizes_for(
    spec: CacheSpec, block_size: int, dtype: torch.dtype, demand: Demand, max_bytes: int
) -> CacheSizes:
    """Enough for as many full contexts as there may be sequences, within `max_bytes`.

    Where that is too little, all groups get the same number of blocks, but each what one sequence's window
    needs, and none more than is of use. Raises ConfigError where one sequence could not run.
    """
    limits = [_limits(group.window, block_size, demand) for group in spec.groups]

    def sizes(equal: int) -> CacheSizes:
        counts = [min(most, max(least, equal)) for least, most in limits]
        grouped = zip(counts, spec.groups, strict=True)
        return CacheSizes(block_size, tuple(GroupSize(count, group.window) for count, group in grouped))

    def num_bytes(equal: int) -> int:
        return cache_bytes(spec, sizes(equal), dtype)

    if num_bytes(0) > max_bytes:
        raise ConfigError(
            f"kv cache: {max_bytes} bytes are too little for one sequence: {num_bytes(0)} are needed for a "
            f"block of {block_size} tokens, and for the windows of layers that have one"
        )
    choices = range(1 + max(most for _, most in limits))
    return sizes(bisect_right(choices, max_bytes, key=num_bytes) - 1)


def _limits(window: int | None, block_size: int, demand: Demand) -> tuple[int, int]:
    """The fewest blocks of a group that are of any use, and the most."""
    context = -(-demand.max_context // block_size)
    if window is None:
        return 1, demand.max_num_seqs * context
    each = min(context, window_blocks(window, block_size))
    step = step_blocks(demand.max_step_tokens, block_size)
    return each + step, demand.max_num_seqs * each + step


def _group_bytes(group: CacheGroup, block_size: int, dtype: torch.dtype) -> int:
    return block_size * group.values_per_token * dtype.itemsize
