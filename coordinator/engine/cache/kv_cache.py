"""The keys and values of all sequences: one slot per token, addressed by block.

Shapes: T tokens, G key/value heads, d head size; slot = block * block_size + offset.
"""

import torch
from torch import Tensor

from coordinator.engine.options import DEFAULT_BLOCK_SIZE
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError


class KVCache:
    """Two tensors per layer. Slots of block 0 stay zero; padding reads them."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = DEFAULT_BLOCK_SIZE,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (config.n_layers, (num_blocks + 1) * block_size, config.n_heads, config.head_dim)
        # Left empty: memory is mapped as blocks are first written, and only written slots are ever read.
        try:
            self.keys = torch.empty(shape, dtype=dtype, device=device)
            self.values = torch.empty(shape, dtype=dtype, device=device)
        except RuntimeError:
            num_bytes = (num_blocks + 1) * block_bytes(config, block_size, dtype)
            raise ConfigError(f"kv cache: {num_bytes >> 20} MiB cannot be had on {device}") from None
        self.keys[:, :block_size] = 0
        self.values[:, :block_size] = 0

    def write(self, layer: int, slots_T: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> None:
        self.keys[layer].index_copy_(0, slots_T, k_TGd)
        self.values[layer].index_copy_(0, slots_T, v_TGd)


def block_bytes(config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return 2 * config.n_layers * block_size * config.d_model * dtype.itemsize


def num_blocks_for(
    config: ModelConfig, block_size: int, dtype: torch.dtype, max_num_seqs: int, max_bytes: int
) -> int:
    """Enough for `max_num_seqs` full contexts, within `max_bytes`; ConfigError if not one block is."""
    per_sequence = -(-config.max_seq_len // block_size)
    affordable = max_bytes // block_bytes(config, block_size, dtype)
    if affordable < 1:
        raise ConfigError(f"kv cache: {max_bytes} bytes hold not one block of {block_size} tokens")
    return min(max_num_seqs * per_sequence, affordable)
