"""Attention of rows of different sequences over a paged cache, in one call.

Shapes: T tokens, N sequences, B blocks of the longest, H heads, G key/value heads, d head size, v width of a
value.
"""

import torch
from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.kernels.base import Contexts
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.kernels.native import _kernels
from moe_model.kernels.native.runtime import Runtime, address_of
from moe_model.layers.attention import AttentionForm, Kept

# What src/rows.h says of `attention_source`.
CACHE_LAYOUT: CacheLayoutName = "head_major"
# Heads that attend together keep their scores of one row, as far as they fit; how many do shows in no bit.
_MOST_HEADS = 16
_MOST_SCORES = 1 << 20


def attend_paged(
    runtime: Runtime,
    form: AttentionForm,
    q_THd: Tensor,
    kept: Kept,
    stored: tuple[Tensor, ...],
    contexts: Contexts,
) -> Tensor:
    """Writes what is kept of each token to its slot, then attends over what the token sees; o_THv.

    Float32 rows over a float32 or bfloat16 cache. A row's numbers depend on what it sees alone.
    """
    check_stored(stored, contexts.layout)
    _check_rows(form, q_THd, kept, stored)
    num_tokens, num_heads, head_dim = q_THd.shape
    keys, values = stored[0], stored[-1]
    num_blocks, num_kv_heads, block_size, _ = keys.shape
    num_sequences, table_stride = contexts.block_table_NB.shape
    value_width = form.value_width or values.shape[3]
    most_seen = min(contexts.longest, form.window or contexts.longest)
    room = max(most_seen, min(_MOST_HEADS * most_seen, _MOST_SCORES))
    assert len(contexts.slots_T) == num_tokens
    o_THv = torch.empty(num_tokens, num_heads, value_width)
    _kernels.attention(
        runtime.kernels,
        q_THd.data_ptr(),
        q_THd.stride(0),
        kept[0].data_ptr(),
        kept[0].stride(0),
        0 if form.value_width else kept[1].data_ptr(),
        kept[-1].stride(0),
        *(keys.data_ptr(), values.data_ptr(), keys.dtype == torch.bfloat16, num_blocks, block_size),
        num_heads,
        num_kv_heads,
        head_dim,
        value_width,
        form.scale,
        form.window or 0,
        address_of(form.sinks_H),
        num_tokens,
        *_addresses(contexts),
        num_sequences,
        table_stride,
        most_seen,
        runtime.scratch.address(4 * runtime.num_threads * room),
        room,
        o_THv.data_ptr(),
        runtime.num_threads,
    )
    return o_THv


def check_stored(stored: tuple[Tensor, ...], layout: CacheLayoutName) -> None:
    """Raises ConfigError for a cache in another layout than that of these kernels."""
    if layout != CACHE_LAYOUT:
        raise ConfigError(f"attention: the cache is {layout}, these kernels read {CACHE_LAYOUT}")
    first = stored[0]
    assert first.dtype in (torch.float32, torch.bfloat16)
    for part in stored:
        assert part.is_contiguous()
        assert part.dtype == first.dtype
        assert part.shape[:3] == first.shape[:3]


def _check_rows(form: AttentionForm, q_THd: Tensor, kept: Kept, stored: tuple[Tensor, ...]) -> None:
    """Parts of wider rows: heads in one piece, tokens anyhow apart."""
    num_tokens, num_heads, width = q_THd.shape
    assert q_THd.dtype == torch.float32
    assert width == stored[0].shape[3]
    assert q_THd.stride()[1:] == (width, 1)
    sinks_H = form.sinks_H
    assert sinks_H is None or (sinks_H.dtype, sinks_H.shape) == (torch.float32, (num_heads,))
    for rows, part in zip(kept, stored, strict=True):
        _, num_heads, _, width = part.shape
        assert rows.dtype == torch.float32
        assert rows.shape == (num_tokens, num_heads, width)
        assert rows.stride()[1:] == (width, 1)


def _addresses(contexts: Contexts) -> tuple[int, int, int, int]:
    tensors = contexts.slots_T, contexts.sequences_T, contexts.lengths_T, contexts.block_table_NB
    slots, sequences, lengths, table = map(Tensor.data_ptr, tensors)
    return slots, sequences, lengths, table
