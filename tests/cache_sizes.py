"""Sizes of small caches."""

import torch

from coordinator.engine.cache.cache_sizes import CacheSizes, Demand, GroupSize, sizes_for
from moe_model.config import ModelConfig
from moe_model.families import family_of


def whole_sizes(num_blocks: int, block_size: int = 4) -> CacheSizes:
    """Of a cache whose layers all keep whole contexts."""
    return CacheSizes(block_size, (GroupSize(num_blocks),))


def sizes_of(
    config: ModelConfig,
    num_blocks: int,
    block_size: int = 4,
    max_num_seqs: int = 8,
    max_step_tokens: int = 64,
) -> CacheSizes:
    """So many blocks for whole contexts, and for each window what so many sequences need."""
    spec = family_of(config).cache_spec(config)
    demand = Demand(config.max_seq_len, max_num_seqs, max_step_tokens)
    most = sizes_for(spec, block_size, torch.float32, demand, 1 << 40)
    return CacheSizes(
        block_size, tuple(GroupSize(num_blocks) if size.window is None else size for size in most.groups)
    )
