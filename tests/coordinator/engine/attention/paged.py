"""Sequences over a paged cache, cut into steps, beside the same sequences whole.

Shapes: T tokens, H query heads, G key/value heads, d head size, v width of a value.
"""

import math
from dataclasses import dataclass, replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from coordinator.engine.attention.torch_attention import AttentionPlan
from coordinator.engine.cache.block_table import BlockTable
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.batch import build_batch
from coordinator.engine.core.sequence import Sequence
from coordinator.engine.core.step import Chunk, Step
from coordinator.engine.messages.request import Request, StopRules
from moe_model.assembled import dense_attention
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.layers.attention import AttentionForm, Kept
from moe_model.layers.specs import CacheGroup, CachePart, CacheSpec, key_value_parts
from moe_model.sampling.params import SamplingParams
from tests.cache_sizes import whole_sizes

BLOCK_SIZE = 4
NUM_BLOCKS = 40


@dataclass(frozen=True)
class Way:
    """A way to attend, and the layout of the cache that it attends over."""

    plan: AttentionPlan
    layout: CacheLayoutName


@dataclass(frozen=True)
class Shape:
    """Of attention; with a `value_width` values are in the keys."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    has_sinks: bool = False
    value_width: int | None = None
    scale: float | None = None

    @property
    def form(self) -> AttentionForm:
        scale = 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale
        sinks_H = torch.linspace(-2, 3, self.num_heads) if self.has_sinks else None
        if sinks_H is not None:
            # Far above all scores: e to the power of it is no float32.
            sinks_H[-1] = 120
        return AttentionForm(scale, self.window, sinks_H, self.value_width)

    @property
    def cache_spec(self) -> CacheSpec:
        parts = key_value_parts(self.num_kv_heads, self.head_dim)
        if self.value_width is not None:
            parts = (CachePart("latent", self.num_kv_heads, self.head_dim),)
        return CacheSpec((CacheGroup((0, 1), parts),))

    def split(self, rows: Tensor) -> tuple[Tensor, Kept]:
        """q_THd and what is kept, of rows as `random_rows` makes them."""
        num_parts = 2 if self.value_width is None else 1
        q_THd, *kept = torch.split(rows, [self.num_heads, *[self.num_kv_heads] * num_parts], dim=1)
        return q_THd, tuple(kept)

    def random_rows(self, num_tokens: int, generator: torch.Generator) -> Tensor:
        num_parts = 2 if self.value_width is None else 1
        num_heads = self.num_heads + num_parts * self.num_kv_heads
        return torch.randn(num_tokens, num_heads, self.head_dim, generator=generator)

    def attend_dense(self, rows: Tensor) -> Tensor:
        """One whole sequence, in float64."""
        q_THd, kept = self.split(rows.double())
        form = self.form
        if form.sinks_H is not None:
            form = replace(form, sinks_H=form.sinks_H.double())
        return dense_attention(1, len(rows), None)(0, form, q_THd, kept)


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
    Shape(21, 1, 104, value_width=88),
    Shape(3, 1, 72, has_sinks=True),
)
SHAPES = st.sampled_from(FORMS)
CUTS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=6), min_size=1, max_size=4)


def dense_and_paged(
    cuts: list[list[int]], shape: Shape, seed: int, way: Way, dtype: torch.dtype = torch.float32
) -> list[tuple[Tensor, Tensor]]:
    """By sequence, whole in float64 and in chunks: `cuts[i]` are the sizes of sequence i's chunks; step n
    computes every sequence's n-th chunk."""
    generator = torch.Generator().manual_seed(seed)
    cache, form = dirty_cache(shape, way.layout, dtype), shape.form
    sequences = [sequence_of(index, sum(sizes)) for index, sizes in enumerate(cuts)]
    inputs = [shape.random_rows(sum(sizes), generator) for sizes in cuts]
    outputs: list[list[Tensor]] = [[] for _ in cuts]
    for step_number in range(max(map(len, cuts))):
        live = [i for i, sizes in enumerate(cuts) if step_number < len(sizes)]
        starts = {i: sum(cuts[i][:step_number]) for i in live}
        counts = {i: cuts[i][step_number] for i in live}
        chunks = tuple(Chunk(sequences[i], starts[i], counts[i], False) for i in live)
        batch = build_batch(Step(chunks), BLOCK_SIZE, torch.device("cpu"))
        ordered = sorted(live, key=lambda i: counts[i] > 1)
        rows = torch.cat([inputs[i][starts[i] : starts[i] + counts[i]] for i in ordered])
        q_THd, kept = shape.split(rows)
        o_THv = way.plan(cache, batch)(0, form, q_THd, kept)
        for i, part in zip(ordered, torch.split(o_THv, [counts[i] for i in ordered]), strict=True):
            outputs[i].append(part)
    return [
        (shape.attend_dense(rows), torch.cat(output)) for rows, output in zip(inputs, outputs, strict=True)
    ]


def sequence_of(index: int, length: int) -> Sequence:
    """One of up to four."""
    sequence = Sequence(Request(str(index), (0,) * length, SamplingParams(), StopRules(1)), 10**6, 16)
    # Blocks of different sequences lie mixed, from the end of the cache to its start.
    sequence.tables = (BlockTable(NUM_BLOCKS - 4 * n - index for n in range(-(-length // BLOCK_SIZE))),)
    return sequence


def dirty_cache(shape: Shape, layout: CacheLayoutName, dtype: torch.dtype = torch.float32) -> KVCache:
    """A cache whose former owners left NaN everywhere but in block 0."""
    cache = KVCache(shape.cache_spec, whole_sizes(NUM_BLOCKS, BLOCK_SIZE), dtype, layout=layout)
    for layer in range(2):
        for part in cache.layer(layer):
            part[1:] = math.nan
    return cache
