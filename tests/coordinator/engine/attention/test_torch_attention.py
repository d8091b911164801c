"""Paged attention of torch equals dense attention over each sequence, however it is cut."""

from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention import torch_attention
from coordinator.engine.attention.running_softmax import RunningSoftmax
from coordinator.engine.attention.torch_attention import paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from moe_model.kernels.cache_layout import CacheLayoutName
from tests.coordinator.engine.attention.paged import CUTS, SHAPES, Shape, Way, dense_and_paged
from tests.examples import examples


@given(CUTS, SHAPES, st.sampled_from(get_args(CacheLayoutName)), st.integers(0, 99))
@settings(max_examples=examples(150))
def test_torch_equals_dense_attention_for_any_cut(
    cuts: list[list[int]], shape: Shape, layout: CacheLayoutName, seed: int
) -> None:
    for dense, o_THd in dense_and_paged(cuts, shape, seed, Way(paged_attention, layout)):
        torch.testing.assert_close(o_THd.double(), dense, rtol=1e-5, atol=1e-5)


@given(CUTS, SHAPES, st.integers(0, 99), st.integers(1, 12), st.integers(1, 60))
@settings(max_examples=examples(150))
def test_torch_attends_in_pieces_of_any_size(
    cuts: list[list[int]], shape: Shape, seed: int, most_slots: int, most_scores: int
) -> None:
    """Whatever is allowed: that much is read of the cache at once, and that many scores are there at once."""
    read = KVCache.read

    class Watched(RunningSoftmax):
        def add(self, k_BGSd: Tensor, v_BGSv: Tensor, seen_BMS: Tensor | None) -> None:
            # One column of one token of each sequence there is at least.
            num_scores = self.result()[..., 0].numel() * k_BGSd.shape[2]
            assert num_scores <= max(most_scores, len(cuts) * shape.num_heads)
            super().add(k_BGSd, v_BGSv, seen_BMS)

    def watched(cache: KVCache, layer: int, slots_N: Tensor) -> tuple[Tensor, ...]:
        assert len(slots_N) <= most_slots
        return read(cache, layer, slots_N)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "read", watched)
        patch.setattr(torch_attention, "RunningSoftmax", Watched)
        num_bytes = 4 * shape.num_kv_heads * shape.head_dim * (2 if shape.value_width is None else 1)
        patch.setattr(torch_attention, "GATHERED_BYTES", most_slots * num_bytes)
        patch.setattr(torch_attention, "SCORES_BYTES", 4 * most_scores)
        for dense, o_THd in dense_and_paged(cuts, shape, seed, Way(paged_attention, "token_major")):
            torch.testing.assert_close(o_THd.double(), dense, rtol=1e-5, atol=1e-5)
