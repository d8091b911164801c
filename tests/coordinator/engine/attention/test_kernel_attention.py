"""Paged attention of the C kernels equals dense attention over each sequence, however it is cut.

Shapes: T tokens, H query heads, G key/value heads, d head size.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention.kernel_attention import kernel_attention, kernel_contexts
from coordinator.engine.attention.torch_attention import paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch, build_batch
from coordinator.engine.core.step import Chunk, Step
from moe_model.errors import ConfigError
from tests.coordinator.engine.attention.paged import (
    BLOCK_SIZE,
    CUTS,
    SHAPES,
    SMALL,
    Shape,
    Way,
    dense_and_paged,
    dirty_cache,
    sequence_of,
)
from tests.examples import examples
from tests.native import needs_native

pytest.importorskip("moe_model.kernels.native._kernels", reason="the C kernels are not built")
from moe_model.kernels.native.native_kernels import NativeKernels
from tests.moe_model.kernels.native.test_native_linear import HERE

pytestmark = needs_native


@given(CUTS, SHAPES, st.integers(0, 99), st.sampled_from(HERE))
@settings(max_examples=examples(200))
def test_kernels_equal_dense_attention_for_any_cut(
    cuts: list[list[int]], shape: Shape, seed: int, instruction_set: str
) -> None:
    for dense, o_THd in dense_and_paged(cuts, shape, seed, _kernels(instruction_set)):
        torch.testing.assert_close(o_THd.double(), dense, rtol=1e-5, atol=1e-5)


@given(CUTS, SHAPES, st.integers(0, 99))
@settings(max_examples=examples(150))
def test_kernels_give_the_same_bits_for_any_cut_and_any_batch(
    cuts: list[list[int]], shape: Shape, seed: int
) -> None:
    """Neither how a sequence is cut nor what else is in the step shows in a row."""
    together = [o_THd for _, o_THd in dense_and_paged(cuts, shape, seed, _kernels())]
    whole = [[sum(sizes)] for sizes in cuts]
    for (_, alone), found in zip(dense_and_paged(whole, shape, seed, _kernels()), together, strict=True):
        assert torch.equal(alone, found)


def test_a_bfloat16_cache_is_as_good_as_its_keys_and_values() -> None:
    cuts = [[5, 1, 1], [3], [6, 6]]
    for dense, o_THd in dense_and_paged(cuts, Shape(4, 2, 8), 3, _kernels(), torch.bfloat16):
        torch.testing.assert_close(o_THd.double(), dense, rtol=0.03, atol=0.03)
        assert not torch.allclose(o_THd.double(), dense, rtol=1e-5, atol=1e-5), "the cache was not used"


def test_a_row_of_nan_stays_in_its_sequence() -> None:
    clean, dirty = torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 8)
    dirty[1, 2] = math.nan
    o_THd = _attend_two(_kernels(), torch.cat([clean, dirty], dim=1), dirty_cache(SMALL, "head_major"))
    assert o_THd[:6].isfinite().all()
    assert o_THd[6:].isnan().all()


def test_a_sink_of_nan_is_in_its_head() -> None:
    """As with torch: a broken weight is not to be lost, whichever of the many NaNs it is."""
    shape = Shape(4, 2, 8, has_sinks=True)
    sinks_H = torch.tensor([0.5, 0.5, -math.inf, 0.5])
    sinks_H.view(torch.int32)[1] = 0x7FC00001
    form = replace(shape.form, sinks_H=sinks_H)
    q_THd, k_TGd, v_TGd = torch.randn(8, 4, 8), torch.randn(8, 2, 8), torch.randn(8, 2, 8)
    for way in (_kernels(), Way(paged_attention, "token_major")):
        cache = dirty_cache(shape, way.layout)
        o_THd = way.plan(cache, _two())(0, form, q_THd, (k_TGd, v_TGd)).view(8, 4, 8)
        assert o_THd[:, 1].isnan().all()
        assert o_THd[:, [0, 2, 3]].isfinite().all()


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


def test_kernels_refuse_a_layout_that_they_do_not_read() -> None:
    with pytest.raises(ConfigError, match="the cache is token_major, these kernels read head_major"):
        _attend_two(_kernels(), torch.randn(3, 8, 2, 8), dirty_cache(SMALL, "token_major"))


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
    [contexts] = kernel_contexts(batch, cache)
    getattr(contexts, part).view(-1)[3 if part != "block_table_NB" else 1] = value
    attend_paged = NativeKernels().attend_paged
    q_THd, k_TGd, v_TGd = torch.randn(3, 8, 2, 8)
    with pytest.raises(ValueError, match="attention outside of the cache"):
        attend_paged(SMALL.form, q_THd, (k_TGd, v_TGd), cache.layer(0), contexts)


def _kernels(instruction_set: str | None = None) -> Way:
    kernels = NativeKernels(instruction_set)
    return Way(kernel_attention(kernels.attend_paged), kernels.cache_layout)


def _two() -> Batch:
    """Four tokens each of two sequences."""
    chunks = tuple(Chunk(sequence_of(index, 4), 0, 4, False) for index in range(2))
    return build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))


def _attend_two(way: Way, rows: Tensor, cache: KVCache) -> Tensor:
    q_THd, *kept = rows
    return way.plan(cache, _two())(0, SMALL.form, q_THd, tuple(kept))


def test_blocks_before_the_window_are_not_read() -> None:
    """Nobody keeps them: the table may say anything there, and other owners' numbers lie in them."""
    shape = Shape(4, 2, 8, window=5, has_sinks=True)
    rows = shape.random_rows(13, torch.Generator().manual_seed(0))
    cache, sequence, way = dirty_cache(shape, "head_major"), sequence_of(0, 13), _kernels()
    ids, found = sequence.tables[0].ids, []
    for start, count in ((0, 12), (12, 1)):
        batch = build_batch(Step((Chunk(sequence, start, count, False),)), BLOCK_SIZE, torch.device("cpu"))
        if start:
            # Position 12 sees 8 to 12: the first two blocks are nobody's.
            for part in cache.layer(0):
                part[list(ids[:2])] = math.nan
            ids[0], ids[1] = 0, 17
        q_THd, kept = shape.split(rows[start : start + count])
        found.append(way.plan(cache, batch)(0, shape.form, q_THd, kept))
    torch.testing.assert_close(torch.cat(found).double(), shape.attend_dense(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 11])
def test_rows_that_attend_together_have_the_bits_that_they_have_alone(window: int | None) -> None:
    """Several rows of a sequence do, where there are many; the next one sees one token more."""
    shape = Shape(4, 2, 40, window=window)
    cuts = [[40], [2, 3, 25, 1]]
    found = [o_THv for _, o_THv in dense_and_paged(cuts, shape, 0, _kernels())]
    single = [[1] * sum(sizes) for sizes in cuts]
    alone = [o_THv for _, o_THv in dense_and_paged(single, shape, 0, _kernels())]
    assert all(torch.equal(*both) for both in zip(found, alone, strict=True))


def test_the_number_of_threads_shows_in_no_bit() -> None:
    """It decides how many heads attend together."""
    shape, length = Shape(128, 1, 72, value_width=64), 40
    assert shape.num_heads * length * shape.head_dim > 200_000, "below, one thread does it all"
    rows = shape.random_rows(length, torch.Generator().manual_seed(0))
    found = []
    for num_threads in (1, 3, 7, 40):
        plan = kernel_attention(NativeKernels(num_threads=num_threads).attend_paged)
        cache, sequence = dirty_cache(shape, "head_major"), sequence_of(0, length)
        for start, count in ((0, length - 1), (length - 1, 1)):
            chunk = Chunk(sequence, start, count, False)
            batch = build_batch(Step((chunk,)), BLOCK_SIZE, torch.device("cpu"))
            q_THd, kept = shape.split(rows[start : start + count])
            o_THv = plan(cache, batch)(0, shape.form, q_THd, kept)
        found.append(o_THv)
    torch.testing.assert_close(found[0].double(), shape.attend_dense(rows)[-1:], rtol=1e-5, atol=1e-5)
    assert all(torch.equal(found[0], other) for other in found)
