"""KVCache: slots, and how many blocks a budget buys."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.cache.kv_cache import KVCache, block_bytes, num_blocks_for
from moe_model.errors import ConfigError
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.layers.specs import CacheGroup, CachePart, CacheSpec

LAYOUTS = get_args(CacheLayoutName)
# Like latent attention: two parts of other widths, one head each.
LATENT = CacheSpec((CacheGroup((0, 1, 2), (CachePart("latent", 1, 6), CachePart("rotary", 1, 2))),))
SPECS = [CacheSpec.of_heads(2, 3, 8), LATENT]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS)
def test_reads_what_was_written_and_nothing_else_changes(spec: CacheSpec, layout: CacheLayoutName) -> None:
    cache = KVCache(spec, num_blocks=3, block_size=4, layout=layout)
    for layer in range(spec.n_layers):
        for stored in cache.layer(layer):
            stored.zero_()
    rows = [torch.randn(2, part.num_heads, part.width) for part in spec.groups[0].parts]
    cache.write(1, torch.tensor([9, 4]), *rows)
    for read, written in zip(cache.read(1, torch.tensor([4, 0, 9])), rows, strict=True):
        assert torch.equal(read[[2, 0]], written)
        assert not read[1].any()
    for layer in range(spec.n_layers):
        for stored, written in zip(cache.layer(layer), rows, strict=True):
            assert stored.count_nonzero() == (written.numel() if layer == 1 else 0)


def test_layouts_are_as_their_names_say() -> None:
    spec, rows = CacheSpec.of_heads(1, 3, 8), torch.randn(2, 1, 3, 8)
    token_major, head_major = (KVCache(spec, 3, 4, layout=layout) for layout in LAYOUTS)
    for cache in (token_major, head_major):
        cache.write(0, torch.tensor([9]), *rows)
    assert torch.equal(token_major.layer(0)[0][2, 1], rows[0, 0])
    assert torch.equal(head_major.layer(0)[1][2, :, 1], rows[1, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_that_padding_reads_is_zero(dtype: torch.dtype, layout: CacheLayoutName) -> None:
    cache = KVCache(SPECS[0], num_blocks=2, block_size=4, dtype=dtype, layout=layout)
    for part in cache.read(1, torch.arange(4)):
        assert not part.any()
        assert part.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_bytes_are_what_a_block_takes(
    dtype: torch.dtype, spec: CacheSpec, layout: CacheLayoutName
) -> None:
    cache = KVCache(spec, num_blocks=4, block_size=8, dtype=dtype, layout=layout)
    taken = sum(part.nbytes for layer in range(spec.n_layers) for part in cache.layer(layer))
    assert taken == 5 * block_bytes(spec, 8, dtype)


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 64), st.integers(0, 1 << 22))
def test_blocks_for_a_budget(max_seq_len: int, block_size: int, max_num_seqs: int, max_bytes: int) -> None:
    spec = CacheSpec.of_heads(1, 1, 8)
    one_block = block_bytes(spec, block_size, torch.float32)
    if max_bytes < one_block:
        with pytest.raises(ConfigError, match="not one block"):
            num_blocks_for(spec, max_seq_len, block_size, torch.float32, max_num_seqs, max_bytes)
        return
    num_blocks = num_blocks_for(spec, max_seq_len, block_size, torch.float32, max_num_seqs, max_bytes)
    one_context = -(-max_seq_len // block_size)
    assert 1 <= num_blocks <= max_num_seqs * one_context
    assert num_blocks * one_block <= max_bytes
    assert num_blocks == max_num_seqs * one_context or (num_blocks + 1) * one_block > max_bytes
