"""How many blocks a budget buys, for whole contexts and for windows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.cache.cache_sizes import (
    Demand,
    block_bytes,
    cache_bytes,
    sizes_for,
    step_blocks,
    window_blocks,
)
from moe_model.errors import ConfigError
from moe_model.layers.specs import CacheGroup, CachePart, CacheSpec, key_value_parts

WHOLE = CacheSpec.of_heads(2, 2, 8)
PARTS = key_value_parts(2, 8)


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 64), st.integers(0, 1 << 22))
def test_whole_contexts(max_context: int, block_size: int, max_num_seqs: int, max_bytes: int) -> None:
    one_block = block_bytes(WHOLE, block_size, torch.float32)
    demand = Demand(max_context, max_num_seqs, 512)
    if max_bytes < one_block:
        with pytest.raises(ConfigError, match="too little for one sequence"):
            sizes_for(WHOLE, block_size, torch.float32, demand, max_bytes)
        return
    sizes = sizes_for(WHOLE, block_size, torch.float32, demand, max_bytes)
    (num_blocks,) = (size.num_blocks for size in sizes.groups)
    one_context = -(-max_context // block_size)
    assert 1 <= num_blocks <= max_num_seqs * one_context
    assert num_blocks * one_block <= max_bytes
    assert num_blocks == max_num_seqs * one_context or (num_blocks + 1) * one_block > max_bytes
    assert sizes.capacity_tokens(max_context) == num_blocks * block_size


@given(
    st.lists(st.sampled_from([None, 1, 5, 16, 100]), min_size=1, max_size=6),
    st.integers(1, 300),
    st.integers(1, 17),
    st.integers(1, 9),
    st.integers(1, 64),
    st.integers(0, 1 << 20),
)
def test_windows(
    windows: list[int | None], max_context: int, block_size: int, seqs: int, step: int, max_bytes: int
) -> None:
    """Never more than the budget or than is of use, and at least what one sequence needs."""
    spec, demand = CacheSpec.by_window(PARTS, windows), Demand(max_context, seqs, step)
    try:
        sizes = sizes_for(spec, block_size, torch.float32, demand, max_bytes)
    except ConfigError:
        least = sizes_for(spec, block_size, torch.float32, Demand(max_context, 1, step), 1 << 40)
        assert max_bytes < cache_bytes(spec, least, torch.float32)
        return
    assert cache_bytes(spec, sizes, torch.float32) <= max_bytes
    one_context = -(-max_context // block_size)
    for size in sizes.groups:
        if size.window is None:
            assert 1 <= size.num_blocks <= seqs * one_context
        else:
            each = min(one_context, window_blocks(size.window, block_size))
            shared = step_blocks(step, block_size)
            assert each + shared <= size.num_blocks <= seqs * each + shared


def test_what_windows_do_not_need_is_for_whole_contexts() -> None:
    """Of gpt-oss's layers half have a window of 128, and its contexts have 131,072 positions."""
    spec, demand = CacheSpec.by_window(PARTS, (128, None) * 12), Demand(131072, 64, 512)
    sizes = sizes_for(spec, 16, torch.bfloat16, demand, 1 << 30)
    whole, windowed = (size.num_blocks for size in sizes.groups)
    assert windowed == 64 * 10 + 32
    assert whole * 16 > 1.8 * (1 << 30) / block_bytes(spec, 1, torch.bfloat16)


def test_where_all_layers_have_a_window_any_context_fits() -> None:
    spec = CacheSpec.by_window(PARTS, (4096,) * 2)
    sizes = sizes_for(spec, 16, torch.float32, Demand(262144, 64, 512), 1 << 30)
    assert sizes.groups[0].num_blocks == 64 * 258 + 32
    assert sizes.capacity_tokens(262144) == 262144


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 60), st.integers(1, 40))
def test_a_chunk_never_needs_more_blocks_than_a_window_and_a_step_have(
    window: int, block_size: int, start: int, num_tokens: int
) -> None:
    first = max(0, start + 1 - window) // block_size
    needed = (start + num_tokens - 1) // block_size - first + 1
    assert needed <= window_blocks(window, block_size) + (num_tokens - 1) // block_size


def test_a_latent_is_one_part() -> None:
    """DeepSeek-V3's: 512 + 64 numbers of each token and layer, and nothing per head."""
    spec = CacheSpec((CacheGroup(tuple(range(61)), (CachePart("latent", 1, 576),)),))
    assert block_bytes(spec, 1, torch.bfloat16) == 61 * 576 * 2


def test_a_budget_without_the_windows_of_one_sequence_is_refused() -> None:
    spec = CacheSpec.by_window(PARTS, (128, None))
    with pytest.raises(ConfigError, match="5000 bytes are too little for one sequence"):
        sizes_for(spec, 16, torch.float32, Demand(1000, 4, 64), 5000)
