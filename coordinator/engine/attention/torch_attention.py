"""Attention over the paged cache: one padded call for all single tokens, one call per longer chunk.

Shapes: T tokens, R single-token rows, S longest context, C context of a chunk, H heads, G key/value heads,
Q query heads of each of those, d head size, N tokens of a chunk, or slots of all rows.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from coordinator.engine.attention.attention_rows import DecodeRows, PrefillSpan, decode_rows, prefill_spans
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch
from moe_model.layers.attention import Attend, AttentionForm, Kept

# What attention is over a cache for the rows of a batch.
AttentionPlan = Callable[[KVCache, Batch], Attend]


def paged_attention(cache: KVCache, batch: Batch) -> Attend:
    """Writes the step's keys and values, then attends; the result rows are in the step's order."""
    device = batch.slots_T.device
    decode = decode_rows(batch, cache.block_size, device)
    prefills = prefill_spans(batch, cache.block_size, device)
    masks = [_causal_mask(span, device) for span in prefills]

    def attend(layer: int, form: AttentionForm, q_THd: Tensor, kept: Kept) -> Tensor:
        assert (form.window, form.sinks_H, form.value_width) == (None, None, None)
        assert math.isclose(form.scale, q_THd.shape[-1] ** -0.5)
        cache.write(layer, batch.slots_T, *kept)
        parts = []
        if decode is not None:
            parts.append(_attend_decode(q_THd, cache, layer, decode))
        for span, mask_NC in zip(prefills, masks, strict=True):
            parts.append(_attend_span(q_THd, cache, layer, span, mask_NC))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return attend


def _attend_decode(q_THd: Tensor, cache: KVCache, layer: int, rows: DecodeRows) -> Tensor:
    num_rows, length = rows.slots_RS.shape
    k_RGSd, v_RGSd = (
        part_NGd.view(num_rows, length, *part_NGd.shape[1:]).transpose(1, 2)
        for part_NGd in cache.read(layer, rows.slots_RS.view(-1))
    )
    # The query heads that see one key head are rows of one product.
    q_RGQd = q_THd[:num_rows].view(num_rows, k_RGSd.shape[1], -1, q_THd.shape[-1])
    mask_R11S = rows.mask_RS[:, None, None, :]
    return F.scaled_dot_product_attention(q_RGQd, k_RGSd, v_RGSd, attn_mask=mask_R11S).flatten(1, 2)


def _attend_span(
    q_THd: Tensor, cache: KVCache, layer: int, span: PrefillSpan, mask_NC: Tensor | None
) -> Tensor:
    q_HNd = q_THd[span.first_row : span.first_row + span.num_tokens].transpose(0, 1).unsqueeze(0)
    k_GCd, v_GCd = (part_CGd.transpose(0, 1).unsqueeze(0) for part_CGd in cache.read(layer, span.slots_C))
    o_HNd = F.scaled_dot_product_attention(
        q_HNd,
        k_GCd,
        v_GCd,
        attn_mask=mask_NC,
        is_causal=mask_NC is None,
        enable_gqa=q_HNd.shape[1] != k_GCd.shape[1],
    )
    return o_HNd.squeeze(0).transpose(0, 1)


def _causal_mask(span: PrefillSpan, device: torch.device) -> Tensor | None:
    """Which of the C positions each of the N tokens sees; None where the plain triangle is right."""
    if span.start == 0:
        return None
    positions_C = torch.arange(span.start + span.num_tokens, device=device)
    return positions_C <= positions_C[span.start :].unsqueeze(1)
