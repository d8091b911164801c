"""Paged attention, torch's and the kernels', equals dense attention over each sequence, however it is cut.

Shapes: T tokens, H query heads, G key/value heads, d head size.
"""

import math
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention.kernel_attention import kernel_attention, kernel_contexts
from coordinator.engine.attention.torch_attention import AttentionPlan, paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import Batch, build_batch
from coordinator.engine.core.scheduler import Chunk, Step
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.messages.request import Request, StopRules
from moe_model.assembled import dense_attention
from moe_model.errors import ConfigError
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.attention import AttentionForm
from moe_model.layers.specs import CacheSpec
from moe_model.sampling.params import SamplingParams
from tests.examples import examples
from tests.native import needs_native

BLOCK_SIZE = 4
# Query heads, key/value heads, head size.
Shape = tuple[int, int, int]
SHAPES = st.sampled_from([(2, 2, 8), (6, 2, 5), (4, 1, 12), (3, 3, 1)])
CUTS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4)


@dataclass(frozen=True)
class Way:
    """A way to attend, and the layout of the cache that it attends over."""

    plan: AttentionPlan
    layout: CacheLayoutName


@given(CUTS, SHAPES, st.sampled_from(get_args(CacheLayoutName)), st.integers(0, 99))
@settings(max_examples=examples(60))
def test_torch_equals_dense_attention_for_any_cut(
    cuts: list[list[int]], shape: Shape, layout: CacheLayoutName, seed: int
) -> None:
    for dense, o_THd in _dense_and_paged(cuts, shape, seed, Way(paged_attention, layout)):
        torch.testing.assert_close(o_THd, dense, rtol=1e-5, atol=1e-5)


@needs_native
@given(CUTS, SHAPES, st.integers(0, 99))
@settings(max_examples=examples(60))
def test_kernels_equal_dense_attention_for_any_cut(cuts: list[list[int]], shape: Shape, seed: int) -> None:
    for dense, o_THd in _dense_and_paged(cuts, shape, seed, _kernels()):
        torch.testing.assert_close(o_THd, dense, rtol=1e-5, atol=1e-5)


@needs_native
@given(CUTS, SHAPES, st.integers(0, 99))
@settings(max_examples=examples(60))
def test_kernels_give_the_same_bits_for_any_cut_and_any_batch(
    cuts: list[list[int]], shape: Shape, seed: int
) -> None:
    """Neither how a sequence is cut nor what else is in the step shows in a row."""
    together = [o_THd for _, o_THd in _dense_and_paged(cuts, shape, seed, _kernels())]
    whole = [[sum(sizes)] for sizes in cuts]
    for (_, alone), found in zip(_dense_and_paged(whole, shape, seed, _kernels()), together, strict=True):
        assert torch.equal(alone, found)


@needs_native
def test_a_bfloat16_cache_is_as_good_as_its_keys_and_values() -> None:
    cuts = [[5, 1, 1], [3], [6, 6]]
    for dense, o_THd in _dense_and_paged(cuts, (4, 2, 8), 3, _kernels(), torch.bfloat16):
        torch.testing.assert_close(o_THd, dense, rtol=0.03, atol=0.03)
        assert not torch.allclose(o_THd, dense, rtol=1e-5, atol=1e-5), "the cache was not used"


@needs_native
def test_a_row_of_nan_stays_in_its_sequence() -> None:
    clean, dirty = torch.randn(3, 4, 2, 8), torch.randn(3, 4, 2, 8)
    dirty[1, 2] = math.nan
    o_THd = _attend_two(_kernels(), torch.cat([clean, dirty], dim=1), _dirty_cache((2, 2, 8), "head_major"))
    assert o_THd[:6].isfinite().all()
    assert o_THd[6:].isnan().all()


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_write_what_the_cache_writes(dtype: torch.dtype) -> None:
    """C and the layout's owner in Python put every value in the same place, rounded alike."""
    rows = torch.randn(3, 8, 2, 8)
    by_kernels, by_cache = (_dirty_cache((2, 2, 8), "head_major", dtype) for _ in range(2))
    _attend_two(_kernels(), rows, by_kernels)
    by_cache.write(0, _two().slots_T, rows[1], rows[2])
    for found, expected in zip(by_kernels.layer(0), by_cache.layer(0), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found[1:].isfinite().any(), "nothing was written"


@needs_native
def test_kernels_refuse_a_layout_that_they_do_not_read() -> None:
    with pytest.raises(ConfigError, match="the cache is token_major, these kernels read head_major"):
        _attend_two(_kernels(), torch.randn(3, 8, 2, 8), _dirty_cache((2, 2, 8), "token_major"))


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
    cache, batch = _dirty_cache((2, 2, 8), "head_major"), _two()
    contexts = kernel_contexts(batch, cache)
    getattr(contexts, part).view(-1)[3 if part != "block_table_NB" else 1] = value
    attend_paged = choose_kernels("native", "cpu").attend_paged
    assert attend_paged is not None
    q_THd, k_TGd, v_TGd = torch.randn(3, 8, 2, 8)
    with pytest.raises(ValueError, match="attention outside of the cache"):
        attend_paged(_form(8), q_THd, (k_TGd, v_TGd), cache.layer(0), contexts)


def _kernels() -> Way:
    kernels = choose_kernels("native", "cpu")
    assert kernels.attend_paged is not None
    return Way(kernel_attention(kernels.attend_paged), kernels.cache_layout)


def _form(head_dim: int) -> AttentionForm:
    return AttentionForm(1 / math.sqrt(head_dim))


def _two() -> Batch:
    """Four tokens each of two sequences."""
    chunks = tuple(Chunk(_sequence(index, 4), 0, 4, False) for index in range(2))
    return build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))


def _attend_two(way: Way, rows: Tensor, cache: KVCache) -> Tensor:
    q_THd, *kept = rows
    return way.plan(cache, _two())(0, _form(q_THd.shape[-1]), q_THd, tuple(kept))


def _dense_and_paged(
    cuts: list[list[int]], shape: Shape, seed: int, way: Way, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """`cuts[i]` are the sizes of sequence i's chunks; step n computes every sequence's n-th chunk."""
    generator = torch.Generator().manual_seed(seed)
    heads = [shape[0], shape[1], shape[1]]
    cache, sequences, inputs = _dirty_cache(shape, way.layout, dtype), [], []
    for index, sizes in enumerate(cuts):
        sequences.append(_sequence(index, sum(sizes)))
        inputs.append(torch.randn(sum(sizes), sum(heads), shape[2], generator=generator))
    outputs: list[list[Tensor]] = [[] for _ in cuts]
    for step_number in range(max(map(len, cuts))):
        live = [i for i, sizes in enumerate(cuts) if step_number < len(sizes)]
        starts = {i: sum(cuts[i][:step_number]) for i in live}
        counts = {i: cuts[i][step_number] for i in live}
        chunks = tuple(Chunk(sequences[i], starts[i], counts[i], False) for i in live)
        batch = build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))
        ordered = sorted(live, key=lambda i: counts[i] > 1)
        rows = torch.cat([inputs[i][starts[i] : starts[i] + counts[i]] for i in ordered])
        q_THd, *kept = torch.split(rows, heads, dim=1)
        o_THd = way.plan(cache, batch)(0, _form(shape[2]), q_THd, tuple(kept))
        for i, part in zip(ordered, torch.split(o_THd, [counts[i] for i in ordered]), strict=True):
            outputs[i].append(part)
    return [
        (_attend_dense(rows, heads), torch.cat(output)) for rows, output in zip(inputs, outputs, strict=True)
    ]


def _sequence(index: int, length: int) -> Sequence:
    sequence = Sequence(Request(str(index), (0,) * length, SamplingParams(), StopRules(1)), 10**6, 16)
    # Blocks of different sequences lie mixed, from the end of the cache to its start.
    sequence.block_ids = [40 - 4 * n - index for n in range(-(-length // BLOCK_SIZE))]
    return sequence


def _dirty_cache(shape: Shape, layout: CacheLayoutName, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache whose former owners left NaN everywhere but in block 0."""
    cache = KVCache(CacheSpec.of_heads(2, *shape[1:]), 40, BLOCK_SIZE, dtype, layout=layout)
    for layer in range(2):
        for part in cache.layer(layer):
            part[1:] = math.nan
    return cache


def _attend_dense(rows: Tensor, heads: list[int]) -> Tensor:
    q_THd, *kept = torch.split(rows, heads, dim=1)
    return dense_attention(1, len(rows), None)(0, _form(rows.shape[-1]), q_THd, tuple(kept))
