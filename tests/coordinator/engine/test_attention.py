"""Paged attention equals dense attention over each sequence, however it is cut into steps.

Shapes: T tokens, H heads, d head size.
"""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention import paged_attention
from coordinator.engine.batch import build_batch
from coordinator.engine.kv_cache import KVCache
from coordinator.engine.request import Request, StopRules
from coordinator.engine.scheduler import Chunk, Step
from coordinator.engine.sequence import Sequence
from moe_model.assembled import dense_attention
from moe_model.sampling import SamplingParams
from tests.models import TINY

BLOCK_SIZE = 4
HEADS = (2, 8)


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 99)
)
@settings(max_examples=60)
def test_equals_dense_attention_for_any_cut(cuts: list[list[int]], seed: int) -> None:
    """`cuts[i]` are the sizes of sequence i's chunks; step n computes every sequence's n-th chunk."""
    generator = torch.Generator().manual_seed(seed)
    cache, sequences, inputs = _dirty_cache(), [], []
    for index, sizes in enumerate(cuts):
        sequences.append(_sequence(index, sum(sizes)))
        inputs.append(torch.randn(3, sum(sizes), *HEADS, generator=generator))
    outputs: list[list[Tensor]] = [[] for _ in cuts]
    for step_number in range(max(map(len, cuts))):
        live = [i for i, sizes in enumerate(cuts) if step_number < len(sizes)]
        _step(cache, cuts, sequences, inputs, outputs, live, step_number)
    for index, qkv in enumerate(inputs):
        dense = dense_attention(1, qkv.shape[1], None)(0, *qkv)
        torch.testing.assert_close(torch.cat(outputs[index]), dense, rtol=1e-5, atol=1e-5)


def _step(
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
    o_THd = paged_attention(cache, batch)(0, *torch.cat(rows, dim=1))
    parts = torch.split(o_THd, [cuts[i][step_number] for i in ordered])
    for i, part in zip(ordered, parts, strict=True):
        outputs[i].append(part)


def _sequence(index: int, length: int) -> Sequence:
    sequence = Sequence(Request(str(index), (0,) * length, SamplingParams(), StopRules(1)), 10**6, 16)
    # Blocks of different sequences lie mixed, from the end of the cache to its start.
    sequence.block_ids = [40 - 4 * n - index for n in range(-(-length // BLOCK_SIZE))]
    return sequence


def _dirty_cache() -> KVCache:
    """A cache whose former owners left NaN everywhere but in the block of nobody."""
    cache = KVCache(TINY, 40, BLOCK_SIZE)
    cache.keys[:, BLOCK_SIZE:] = math.nan
    cache.values[:, BLOCK_SIZE:] = math.nan
    return cache
