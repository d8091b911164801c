"""Attention of rows of different sequences over a paged cache, in one call.

Shapes: T tokens, N sequences, B blocks of the longest, H heads, G key/value heads, d head size.
"""

import math

import torch
from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.kernels.base import Contexts
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.runtime import Runtime
from moe_model.layers.attention import AttentionForm, Kept

# What src/rows.h says of `attention_source`.
CACHE_LAYOUT: CacheLayoutName = "head_major"


def attend_paged(
    runtime: Runtime,
    form: AttentionForm,
    q_THd: Tensor,
    kept: Kept,
    stored: tuple[Tensor, ...],
    contexts: Contexts,
) -> Tensor:
    """Writes keys and values to their slots, then softmax(q kᵀ / √d) v over each token's context; o_THd.

    Float32 rows over a float32 or bfloat16 cache. The numbers of a row depend on its own context alone.
    """
    assert (form.window, form.sinks_H, form.value_width) == (None, None, None)
    assert math.isclose(form.scale, q_THd.shape[-1] ** -0.5)
    (k_TGd, v_TGd), (keys, values) = kept, stored
    _check_cache(keys, values, contexts.layout)
    _check_rows(q_THd, k_TGd, v_TGd)
    num_tokens, num_heads, head_dim = q_THd.shape
    num_blocks, num_kv_heads, block_size, _ = keys.shape
    num_sequences, table_stride = contexts.block_table_NB.shape
    assert k_TGd.shape == (num_tokens, num_kv_heads, keys.shape[3])
    assert len(contexts.slots_T) == num_tokens
    o_THd = torch.empty(num_tokens, num_heads, head_dim)
    _kernels.attention(
        runtime.kernels,
        q_THd.data_ptr(),
        k_TGd.data_ptr(),
        v_TGd.data_ptr(),
        q_THd.stride(0),
        k_TGd.stride(0),
        keys.data_ptr(),
        values.data_ptr(),
        keys.dtype == torch.bfloat16,
        num_blocks,
        block_size,
        num_heads,
        num_kv_heads,
        head_dim,
        num_tokens,
        contexts.slots_T.data_ptr(),
        contexts.sequences_T.data_ptr(),
        contexts.lengths_T.data_ptr(),
        contexts.block_table_NB.data_ptr(),
        num_sequences,
        table_stride,
        contexts.longest,
        runtime.scratch.address(4 * runtime.num_threads * contexts.longest),
        o_THd.data_ptr(),
        runtime.num_threads,
    )
    return o_THd


def _check_cache(keys: Tensor, values: Tensor, layout: CacheLayoutName) -> None:
    if layout != CACHE_LAYOUT:
        raise ConfigError(f"attention: the cache is {layout}, these kernels read {CACHE_LAYOUT}")
    assert (keys.dtype, keys.shape) == (values.dtype, values.shape)
    assert keys.is_contiguous()
    assert values.is_contiguous()


def _check_rows(q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> None:
    """Parts of one product's rows: heads in one piece, tokens as far apart as that product is wide."""
    within_row = (q_THd.shape[2], 1)
    assert q_THd.dtype == k_TGd.dtype == v_TGd.dtype == torch.float32
    assert q_THd.stride()[1:] == k_TGd.stride()[1:] == v_TGd.stride()[1:] == within_row
    assert k_TGd.stride(0) == v_TGd.stride(0)
    assert k_TGd.shape == v_TGd.shape
    assert k_TGd.shape[2] == q_THd.shape[2]
