"""Attention over the paged cache with torch, of any form, in memory that does not grow with the contexts.

Single tokens are together, longer chunks by themselves. Torch's own attention computes what it computes
without keeping all scores and copies of the keys: single tokens, and the beginnings of sequences, as far as
they fit in one piece. The rest goes piece by piece.

Shapes: T tokens, N rows of a part, B sequences of a part, M tokens of each, S columns of a piece, G key/value
heads, Q query heads of each of those, H = G · Q, d head size, v width of a value.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from coordinator.engine.attention.attention_rows import GroupBlocks, QueryPart, query_parts
from coordinator.engine.attention.running_softmax import RunningSoftmax
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch
from moe_model.layers.attention import Attend, AttentionForm, Kept

# What attention is over a cache for the rows of a batch.
AttentionPlan = Callable[[KVCache, Batch], Attend]

# What is read of the cache at once, and the float32 scores of one product.
GATHERED_BYTES = 256 << 20
SCORES_BYTES = 64 << 20


def paged_attention(cache: KVCache, batch: Batch) -> Attend:
    """Writes the step's keys and values, then attends; the result rows are in the step's order."""
    parts_of: dict[tuple[int, int | None], list[QueryPart]] = {}

    def attend(layer: int, form: AttentionForm, q_THd: Tensor, kept: Kept) -> Tensor:
        group = cache.group_of(layer)
        cache.write(layer, batch.slots[group], *kept)
        most_slots = _most_slots(cache, layer)
        if (group, form.window) not in parts_of:
            blocks = GroupBlocks(cache.block_size, group)
            parts_of[group, form.window] = query_parts(batch, blocks, form.window, most_slots)
        o_THv = q_THd.new_empty(*q_THd.shape[:2], form.value_width or kept[-1].shape[-1])
        for part in parts_of[group, form.window]:
            o_THv[part.rows] = _PartAttention(cache, layer, form, part, most_slots).attend(q_THd[part.rows])
        return o_THv

    return attend


def _most_slots(cache: KVCache, layer: int) -> int:
    bytes_of_block = sum(part[0].numel() * part.element_size() for part in cache.layer(layer))
    return max(1, GATHERED_BYTES * cache.block_size // bytes_of_block)


class _PartAttention:
    """Of some rows of a step in one layer."""

    def __init__(
        self, cache: KVCache, layer: int, form: AttentionForm, part: QueryPart, most_slots: int
    ) -> None:
        self._cache, self._layer, self._form, self._part = cache, layer, form, part
        self._most_slots = most_slots

    def attend(self, q_NHd: Tensor) -> Tensor:
        """Returns o_NHv."""
        part, form = self._part, self._form
        num_columns = part.slots_BS.shape[1]
        if form.sinks_H is None and form.value_width is None and part.slots_BS.numel() <= self._most_slots:
            if part.num_tokens == 1:
                return self._single_tokens(q_NHd)
            if part.is_triangle and (form.window or num_columns) >= num_columns:
                return self._triangle(q_NHd)
        return self._by_pieces(q_NHd)

    def _single_tokens(self, q_NHd: Tensor) -> Tensor:
        columns = range(self._part.slots_BS.shape[1])
        k_BGSd, v_BGSd = self._read(columns)
        seen_BMS = self._part.seen(range(1), columns, self._form.window)
        # The query heads that see one key head are rows of one product.
        o_BGQd = F.scaled_dot_product_attention(
            q_NHd.view(*k_BGSd.shape[:2], -1, q_NHd.shape[-1]),
            k_BGSd,
            v_BGSd,
            attn_mask=None if seen_BMS is None else seen_BMS[:, None],
            scale=self._form.scale,
        )
        return o_BGQd.flatten(1, 2)

    def _triangle(self, q_NHd: Tensor) -> Tensor:
        k_1GSd, v_1GSd = self._read(range(self._part.num_tokens))
        o_1HSd = F.scaled_dot_product_attention(
            q_NHd.transpose(0, 1).unsqueeze(0),
            k_1GSd,
            v_1GSd,
            is_causal=True,
            scale=self._form.scale,
            enable_gqa=q_NHd.shape[1] != k_1GSd.shape[1],
        )
        return o_1HSd.squeeze(0).transpose(0, 1)

    def _by_pieces(self, q_NHd: Tensor) -> Tensor:
        num_sequences, num_columns = self._part.slots_BS.shape
        num_heads, width = q_NHd.shape[1:]
        most_scores = SCORES_BYTES // (4 * num_sequences * num_heads)
        columns_at_once = max(1, min(self._most_slots // num_sequences, most_scores, num_columns))
        tokens_at_once = max(1, most_scores // columns_at_once)
        blocks: list[tuple[range, RunningSoftmax]] = []
        for columns in _ranges(num_columns, columns_at_once):
            k_BGSd, v_BGSv = self._read(columns)
            if not blocks:
                q_BGQMd = q_NHd.view(num_sequences, -1, k_BGSd.shape[1], num_heads // k_BGSd.shape[1], width)
                q_BGQMd = q_BGQMd.permute(0, 2, 3, 1, 4)
                blocks = list(self._blocks(q_BGQMd, v_BGSv.shape[-1], tokens_at_once))
            for tokens, softmax in blocks:
                if columns.start <= self._part.own[1] + tokens.stop - 1:
                    softmax.add(k_BGSd, v_BGSv, self._part.seen(tokens, columns, self._form.window))
        o_BGQMv = torch.cat([softmax.result() for _, softmax in blocks], dim=3)
        return o_BGQMv.permute(0, 3, 1, 2, 4).reshape(len(q_NHd), num_heads, -1).to(q_NHd.dtype)

    def _blocks(
        self, q_BGQMd: Tensor, value_width: int, tokens_at_once: int
    ) -> Iterator[tuple[range, RunningSoftmax]]:
        sinks_H = self._form.sinks_H
        sinks_GQ = None if sinks_H is None else sinks_H.to(q_BGQMd.device).view(q_BGQMd.shape[1:3])
        for tokens in _ranges(self._part.num_tokens, tokens_at_once):
            block_BGQMd = q_BGQMd[:, :, :, tokens.start : tokens.stop]
            yield tokens, RunningSoftmax(block_BGQMd, self._form.scale, value_width, sinks_GQ)

    def _read(self, columns: range) -> tuple[Tensor, Tensor]:
        """k_BGSd and v_BGSv."""
        slots_BS = self._part.slots_BS[:, columns.start : columns.stop]
        parts = [
            part_NGd.view(*slots_BS.shape, *part_NGd.shape[1:]).transpose(1, 2)
            for part_NGd in self._cache.read(self._layer, slots_BS.reshape(-1))
        ]
        return parts[0], parts[0][..., : self._form.value_width] if len(parts) == 1 else parts[1]


def _ranges(length: int, at_once: int) -> Iterator[range]:
    for start in range(0, length, at_once):
        yield range(start, min(start + at_once, length))
