"""KVCache: slots, and how many blocks a budget buys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.engine.cache.kv_cache import KVCache, block_bytes, num_blocks_for
from moe_model import ModelConfig
from moe_model.errors import ConfigError
from tests.models import TINY


def test_writes_only_its_slots_of_its_layer() -> None:
    cache = KVCache(TINY, num_blocks=3, block_size=4)
    assert cache.keys.shape == cache.values.shape == (2, 16, 2, 8)
    cache.keys.zero_()
    cache.values.zero_()
    k_TGd, v_TGd = torch.randn(2, 2, 8), torch.randn(2, 2, 8)
    cache.write(1, torch.tensor([9, 4]), k_TGd, v_TGd)
    for stored, written in ((cache.keys, k_TGd), (cache.values, v_TGd)):
        assert torch.equal(stored[1, [9, 4]], written)
        assert stored.count_nonzero() == written.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_of_nobody_is_zero(dtype: torch.dtype) -> None:
    cache = KVCache(TINY, num_blocks=2, block_size=4, dtype=dtype)
    assert not cache.keys[:, :4].any()
    assert not cache.values[:, :4].any()
    assert cache.keys.dtype == cache.values.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_bytes_are_what_a_block_takes(dtype: torch.dtype) -> None:
    cache = KVCache(TINY, num_blocks=4, block_size=8, dtype=dtype)
    assert (cache.keys.nbytes + cache.values.nbytes) == 5 * block_bytes(TINY, 8, dtype)


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 64), st.integers(0, 1 << 22))
def test_blocks_for_a_budget(max_seq_len: int, block_size: int, max_num_seqs: int, max_bytes: int) -> None:
    config = ModelConfig(d_model=8, n_heads=1, n_layers=1, vocab_size=4, max_seq_len=max_seq_len)
    one_block = block_bytes(config, block_size, torch.float32)
    if max_bytes < one_block:
        with pytest.raises(ConfigError, match="not one block"):
            num_blocks_for(config, block_size, torch.float32, max_num_seqs, max_bytes)
        return
    num_blocks = num_blocks_for(config, block_size, torch.float32, max_num_seqs, max_bytes)
    one_context = -(-max_seq_len // block_size)
    assert 1 <= num_blocks <= max_num_seqs * one_context
    assert num_blocks * one_block <= max_bytes
    assert num_blocks == max_num_seqs * one_context or (num_blocks + 1) * one_block > max_bytes
