"""Paged attention, torch's and the kernels', equals dense attention over each sequence, however it is cut.

Shapes: T tokens, H query heads, G key/value heads, d head size.
"""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention import torch_attention
from coordinator.engine.attention.kernel_attention import kernel_attention, kernel_contexts
from coordinator.engine.attention.torch_attention import paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch, build_batch
from coordinator.engine.core.scheduler import Chunk, Step
from moe_model.errors import ConfigError
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.kernels.choice import choose_kernels
from tests.coordinator.engine.attention.paged import (
    BLOCK_SIZE,
    Shape,
    Way,
    dense_and_paged,
    dirty_cache,
    sequence_of,
)
from tests.examples import examples
from tests.native import needs_native

SMALL = Shape(2, 2, 8)
FORMS = (
    Shape(2, 2, 8),
    Shape(6, 2, 5),
    Shape(4, 1, 12),
    Shape(3, 3, 1),
    Shape(4, 2, 8, scale=0.7),
    Shape(4, 2, 8, window=1),
    Shape(6, 2, 5, window=3),
    Shape(2, 1, 16, window=7),
    Shape(4, 2, 8, has_sinks=True),
    Shape(6, 3, 9, window=5, has_sinks=True),
    Shape(5, 1, 20, value_width=13, scale=0.2),
    Shape(17, 1, 24, value_width=24),
    Shape(4, 2, 12, value_width=8, window=4, has_sinks=True),
)
SHAPES = st.sampled_from(FORMS)
CUTS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4)


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
    with pytest.MonkeyPatch.context() as patch:
        num_bytes = 4 * shape.num_kv_heads * shape.head_dim * (2 if shape.value_width is None else 1)
        patch.setattr(torch_attention, "GATHERED_BYTES", most_slots * num_bytes)
        patch.setattr(torch_attention, "SCORES_BYTES", 4 * most_scores)
        for dense, o_THd in dense_and_paged(cuts, shape, seed, Way(paged_attention, "token_major")):
            torch.testing.assert_close(o_THd.double(), dense, rtol=1e-5, atol=1e-5)


@needs_native
@given(CUTS, st.sampled_from(FORMS[:4]), st.integers(0, 99))
@settings(max_examples=examples(60))
def test_kernels_equal_dense_attention_for_any_cut(cuts: list[list[int]], shape: Shape, seed: int) -> None:
    for dense, o_THd in dense_and_paged(cuts, shape, seed, _kernels()):
        torch.testing.assert_close(o_THd.double(), dense, rtol=1e-5, atol=1e-5)


@needs_native
@given(CUTS, st.sampled_from(FORMS[:4]), st.integers(0, 99))
@settings(max_examples=examples(60))
def test_kernels_give_the_same_bits_for_any_cut_and_any_batch(
    cuts: list[list[int]], shape: Shape, seed: int
) -> None:
    """Neither how a sequence is cut nor what else is in the step shows in a row."""
    together = [o_THd for _, o_THd in dense_and_paged(cuts, shape, seed, _kernels())]
    whole = [[sum(sizes)] for sizes in cuts]
    for (_, alone), found in zip(dense_and_paged(whole, shape, seed, _kernels()), together, strict=True):
        assert torch.equal(alone, found)


@needs_native
def test_a_bfloat16_cache_is_as_good_as_its_keys_and_values() -> None:
    cuts = [[5, 1, 1], [3], [6, 6]]
    for dense, o_THd in dense_and_paged(cuts, Shape(4, 2, 8), 3, _kernels(), torch.bfloat16):
        torch.testing.assert_close(o_THd.double(), dense, rtol=0.03, atol=0.03)
        assert not torch.allclose(o_THd.double(), dense, rtol=1e-5, atol=1e-5), "the cache was not used"


@needs_native
def test_a_row_of_nan_stays_in_its_sequence() -> None:
    clean, dirty = torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 8)
    dirty[1, 2] = math.nan
    o_THd = _attend_two(_kernels(), torch.cat([clean, dirty], dim=1), dirty_cache(SMALL, "head_major"))
    assert o_THd[:6].isfinite().all()
    assert o_THd[6:].isnan().all()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_write_what_the_cache_writes(dtype: torch.dtype) -> None:
    """C and the layout's owner in Python put every value in the same place, rounded alike."""
    rows = torch.randn(3, 8, 2, 8)
    by_kernels, by_cache = (dirty_cache(SMALL, "head_major", dtype) for _ in range(2))
    _attend_two(_kernels(), rows, by_kernels)
    by_cache.write(0, _two().slots[0], rows[1], rows[2])
    for found, expected in zip(by_kernels.layer(0), by_cache.layer(0), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found[1:].isfinite().any(), "nothing was written"


@needs_native
def test_kernels_refuse_a_layout_that_they_do_not_read() -> None:
    with pytest.raises(ConfigError, match="the cache is token_major, these kernels read head_major"):
        _attend_two(_kernels(), torch.randn(3, 8, 2, 8), dirty_cache(SMALL, "token_major"))


@needs_native
@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("slots_T", 41 * BLOCK_SIZE),
        ("slots_T", -1),
        ("sequences_T", 2),
        ("lengths_T", 0),
        ("lengths_T", 9),
        ("block_table_NB", 41),
        ("block_table_NB", -1),
    ],
)
def test_kernels_refuse_contexts_outside_of_the_cache(part: str, value: int) -> None:
    """Instead of reading memory that is not the cache's."""
    cache, batch = dirty_cache(SMALL, "head_major"), _two()
    contexts = kernel_contexts(batch, cache, 0)
    getattr(contexts, part).view(-1)[3 if part != "block_table_NB" else 1] = value
    attend_paged = choose_kernels("native", "cpu").attend_paged
    assert attend_paged is not None
    q_THd, k_TGd, v_TGd = torch.randn(3, 8, 2, 8)
    with pytest.raises(ValueError, match="attention outside of the cache"):
        attend_paged(SMALL.form, q_THd, (k_TGd, v_TGd), cache.layer(0), contexts)


def _kernels() -> Way:
    kernels = choose_kernels("native", "cpu")
    assert kernels.attend_paged is not None
    return Way(kernel_attention(kernels.attend_paged), kernels.cache_layout)


def _two() -> Batch:
    """Four tokens each of two sequences."""
    chunks = tuple(Chunk(sequence_of(index, 4), 0, 4, False) for index in range(2))
    return build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))


def _attend_two(way: Way, rows: Tensor, cache: KVCache) -> Tensor:
    q_THd, *kept = rows
    return way.plan(cache, _two())(0, SMALL.form, q_THd, tuple(kept))
