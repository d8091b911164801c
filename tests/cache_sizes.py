"""Sizes of small caches."""

from collections.abc import Sequence

import torch

from coordinator.engine.cache.cache_sizes import CacheSizes, Demand, GroupSize, sizes_for
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.layers.specs import CacheSpec, key_value_parts


def whole_sizes(num_blocks: int, block_size: int = 4) -> CacheSizes:
    """Of a cache whose layers all keep whole contexts."""
    return CacheSizes(block_size, (GroupSize(num_blocks),))


def window_sizes(
    windows: Sequence[int | None],
    num_blocks: int,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_step_tokens: int = 64,
    max_context: int = 12,
) -> CacheSizes:
    """So many blocks for whole contexts, and for each window what so many sequences need."""
    spec = CacheSpec.by_window(key_value_parts(1, 1), windows)
    demand = Demand(max_context, max_num_seqs, max_step_tokens)
    most = sizes_for(spec, block_size, torch.float32, demand, 1 << 40)
    return CacheSizes(
        block_size, tuple(GroupSize(num_blocks) if size.window is None else size for size in most.groups)
    )


def sizes_of(
    config: ModelConfig,
    num_blocks: int,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_step_tokens: int = 64,
) -> CacheSizes:
    """Of a family's cache, as `window_sizes`."""
    windows = [group.window for group in family_of(config).cache_spec(config).groups]
    return window_sizes(windows, num_blocks, block_size, max_num_seqs, max_step_tokens, config.max_seq_len)
