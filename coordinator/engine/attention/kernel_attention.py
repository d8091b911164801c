"""Attention over the paged cache by kernels that take all rows in one call, whatever their lengths.

Shapes: T tokens, N chunks, B blocks of the longest context, H heads, G key/value heads, d head size.
"""

import numpy as np
import torch

from coordinator.engine.attention.attention_rows import block_table
from coordinator.engine.attention.torch_attention import AttentionPlan, paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch
from moe_model.kernels.base import Contexts, Kernels, PagedAttention
from moe_model.kernels.step_program import PagedAttend
from moe_model.layers.attention import Attend


def attention_plan(kernels: Kernels) -> AttentionPlan:
    """The kernels' own attention, or torch's where they have none."""
    return paged_attention if kernels.attend_paged is None else kernel_attention(kernels.attend_paged)


def kernel_attention(attend_paged: PagedAttention) -> AttentionPlan:
    """Writes the step's keys and values, then attends."""

    def plan(cache: KVCache, batch: Batch) -> Attend:
        return PagedAttend(attend_paged, cache, kernel_contexts(batch, cache))

    return plan


def kernel_contexts(batch: Batch, cache: KVCache) -> list[Contexts]:
    """By group of the cache: a row sees its sequence up to and including itself. Of a group with a window the
    blocks are there that the window reaches, and 0 stands for those behind it."""
    chunks = batch.chunks
    longest = max(chunk.start + chunk.num_tokens for chunk in chunks)
    sequences = np.arange(len(chunks), dtype=np.int32)
    if len(batch.positions_T) > len(chunks):
        sequences = sequences.repeat([chunk.num_tokens for chunk in chunks])
    sequences_T = torch.from_numpy(sequences)
    lengths_T = torch.from_numpy(batch.positions_T.numpy().astype(np.int32) + 1)
    num_blocks = -(-longest // cache.block_size)
    return [
        Contexts(
            slots_T,
            sequences_T,
            lengths_T,
            torch.from_numpy(block_table(chunks, num_blocks, group)),
            longest,
            cache.layout.name,
        )
        for group, slots_T in enumerate(batch.slots)
    ]
