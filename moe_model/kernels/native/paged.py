"""Attention of rows of different sequences over a paged cache, in one call.

Shapes: T tokens, N sequences, B blocks of the longest, H heads, G key/value heads, d head size, S slots.
"""

import torch
from torch import Tensor

from moe_model.kernels.base import Contexts
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.runtime import Runtime


def attend_paged(
    runtime: Runtime,
    q_THd: Tensor,
    k_TGd: Tensor,
    v_TGd: Tensor,
    keys_SGd: Tensor,
    values_SGd: Tensor,
    contexts: Contexts,
) -> Tensor:
    """Writes keys and values to their slots, then softmax(q kᵀ / √d) v over each token's context; o_THd.

    Float32 rows over a float32 or bfloat16 cache. The numbers of a row depend on its own context alone.
    """
    num_tokens, num_heads, head_dim = q_THd.shape
    num_kv_heads = keys_SGd.shape[1]
    _check_rows(q_THd, k_TGd, v_TGd)
    assert keys_SGd.is_contiguous()
    assert values_SGd.is_contiguous()
    assert contexts.slots_T.dtype == torch.int64
    assert contexts.lengths_T.dtype == contexts.sequences_T.dtype == torch.int32
    num_threads = runtime.num_threads
    o_THd = torch.empty(num_tokens, num_heads, head_dim)
    _kernels.attention(
        runtime.kernels,
        q_THd.data_ptr(),
        k_TGd.data_ptr(),
        v_TGd.data_ptr(),
        q_THd.stride(0),
        k_TGd.stride(0),
        keys_SGd.data_ptr(),
        values_SGd.data_ptr(),
        keys_SGd.dtype == torch.bfloat16,
        contexts.block_size,
        num_heads,
        num_kv_heads,
        head_dim,
        num_tokens,
        contexts.slots_T.data_ptr(),
        contexts.sequences_T.data_ptr(),
        contexts.lengths_T.data_ptr(),
        contexts.block_table_NB.data_ptr(),
        contexts.block_table_NB.shape[1],
        contexts.longest,
        runtime.scratch.address(4 * num_threads * contexts.longest),
        o_THd.data_ptr(),
        num_threads,
    )
    return o_THd


def _check_rows(q_THd: Tensor, k_TGd: Tensor, v_TGd: Tensor) -> None:
    """Parts of one product's rows: heads in one piece, tokens as far apart as that product is wide."""
    within_row = (q_THd.shape[2], 1)
    assert q_THd.dtype == k_TGd.dtype == v_TGd.dtype == torch.float32
    assert q_THd.stride()[1:] == k_TGd.stride()[1:] == v_TGd.stride()[1:] == within_row
    assert k_TGd.stride(0) == v_TGd.stride(0)
