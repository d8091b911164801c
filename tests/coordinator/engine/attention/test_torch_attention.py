"""Paged attention, torch's and the kernels', equals dense attention over each sequence, however it is cut.

Shapes: T tokens, H heads, d head size.
"""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention.kernel_attention import kernel_attention
from coordinator.engine.attention.torch_attention import AttentionPlan, paged_attention
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import build_batch
from coordinator.engine.core.scheduler import Chunk, Step
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.messages.request import Request, StopRules
from moe_model.assembled import dense_attention
from moe_model.kernels.choice import choose_kernels
from moe_model.sampling.params import SamplingParams
from tests.examples import examples
from tests.models import TINY
from tests.native import needs_native

BLOCK_SIZE = 4
HEADS = (2, 8)


CUTS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4)


@given(CUTS, st.integers(0, 99))
@settings(max_examples=examples(60))
def test_torch_equals_dense_attention_for_any_cut(cuts: list[list[int]], seed: int) -> None:
    for dense, o_THd in _dense_and_paged(cuts, seed, paged_attention):
        torch.testing.assert_close(o_THd, dense, rtol=1e-5, atol=1e-5)


@needs_native
@given(CUTS, st.integers(0, 99))
@settings(max_examples=examples(60))
def test_kernels_equal_dense_attention_for_any_cut(cuts: list[list[int]], seed: int) -> None:
    for dense, o_THd in _dense_and_paged(cuts, seed, _kernel_plan()):
        torch.testing.assert_close(o_THd, dense, rtol=1e-5, atol=1e-5)


@needs_native
@given(CUTS, st.integers(0, 99))
@settings(max_examples=examples(60))
def test_kernels_give_the_same_bits_for_any_cut_and_any_batch(cuts: list[list[int]], seed: int) -> None:
    """Neither how a sequence is cut nor what else is in the step shows in a row."""
    together = [o_THd for _, o_THd in _dense_and_paged(cuts, seed, _kernel_plan())]
    whole = [[sum(sizes)] for sizes in cuts]
    for (_, alone), found in zip(_dense_and_paged(whole, seed, _kernel_plan()), together, strict=True):
        assert torch.equal(alone, found)


@needs_native
def test_a_bfloat16_cache_is_as_good_as_its_keys_and_values() -> None:
    cuts = [[5, 1, 1], [3], [6, 6]]
    for dense, o_THd in _dense_and_paged(cuts, 3, _kernel_plan(), torch.bfloat16):
        torch.testing.assert_close(o_THd, dense, rtol=0.03, atol=0.03)
        assert not torch.allclose(o_THd, dense, rtol=1e-5, atol=1e-5), "the cache was not used"


@needs_native
def test_a_row_of_nan_stays_in_its_sequence() -> None:
    clean, dirty = torch.randn(3, 4, *HEADS), torch.randn(3, 4, *HEADS)
    dirty[1, 2] = math.nan
    sequences = [_sequence(0, 4), _sequence(1, 4)]
    chunks = tuple(Chunk(sequence, 0, 4, False) for sequence in sequences)
    batch = build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))
    o_THd = _kernel_plan()(_dirty_cache(), batch)(0, *torch.cat([clean, dirty], dim=1))
    assert o_THd[:6].isfinite().all()
    assert o_THd[6:].isnan().all()


def _kernel_plan() -> AttentionPlan:
    attend_paged = choose_kernels("native", "cpu").attend_paged
    assert attend_paged is not None
    return kernel_attention(attend_paged)


def _dense_and_paged(
    cuts: list[list[int]], seed: int, plan: AttentionPlan, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """`cuts[i]` are the sizes of sequence i's chunks; step n computes every sequence's n-th chunk."""
    generator = torch.Generator().manual_seed(seed)
    cache, sequences, inputs = _dirty_cache(dtype), [], []
    for index, sizes in enumerate(cuts):
        sequences.append(_sequence(index, sum(sizes)))
        inputs.append(torch.randn(3, sum(sizes), *HEADS, generator=generator))
    outputs: list[list[Tensor]] = [[] for _ in cuts]
    for step_number in range(max(map(len, cuts))):
        live = [i for i, sizes in enumerate(cuts) if step_number < len(sizes)]
        _step(plan, cache, cuts, sequences, inputs, outputs, live, step_number)
    return [
        (dense_attention(1, qkv.shape[1], None)(0, *qkv), torch.cat(output))
        for qkv, output in zip(inputs, outputs, strict=True)
    ]


def _step(
    plan: AttentionPlan,
    cache: KVCache,
    cuts: list[list[int]],
    sequences: list[Sequence],
    inputs: list[Tensor],
    outputs: list[list[Tensor]],
    live: list[int],
    step_number: int,
) -> None:
    starts = {i: sum(cuts[i][:step_number]) for i in live}
    chunks = tuple(Chunk(sequences[i], starts[i], cuts[i][step_number], False) for i in live)
    batch = build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))
    ordered = [i for i in live if cuts[i][step_number] == 1] + [i for i in live if cuts[i][step_number] > 1]
    rows = [inputs[i][:, starts[i] : starts[i] + cuts[i][step_number]] for i in ordered]
    o_THd = plan(cache, batch)(0, *torch.cat(rows, dim=1))
    parts = torch.split(o_THd, [cuts[i][step_number] for i in ordered])
    for i, part in zip(ordered, parts, strict=True):
        outputs[i].append(part)


def _sequence(index: int, length: int) -> Sequence:
    sequence = Sequence(Request(str(index), (0,) * length, SamplingParams(), StopRules(1)), 10**6, 16)
    # Blocks of different sequences lie mixed, from the end of the cache to its start.
    sequence.block_ids = [40 - 4 * n - index for n in range(-(-length // BLOCK_SIZE))]
    return sequence


def _dirty_cache(dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache whose former owners left NaN everywhere but in the block of nobody."""
    cache = KVCache(TINY, 40, BLOCK_SIZE, dtype)
    cache.keys[:, BLOCK_SIZE:] = math.nan
    cache.values[:, BLOCK_SIZE:] = math.nan
    return cache
