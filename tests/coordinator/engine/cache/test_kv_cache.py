"""KVCache: what is written is read, in every group and layout."""

from typing import get_args

import pytest
import torch

from coordinator.engine.cache.cache_sizes import CacheSizes, GroupSize, cache_bytes
from coordinator.engine.cache.kv_cache import KVCache
from moe_model.errors import ConfigError
from moe_model.kernels.cache_layout import CacheLayoutName
from moe_model.layers.specs import CacheGroup, CachePart, CacheSpec, key_value_parts
from tests.cache_sizes import whole_sizes

LAYOUTS = get_args(CacheLayoutName)
# Like latent attention: two parts of other widths, one head each.
LATENT = CacheSpec((CacheGroup((0, 1, 2), (CachePart("latent", 1, 6), CachePart("rotary", 1, 2))),))
WINDOWED = CacheSpec.by_window(key_value_parts(3, 8), (5, None, 5, None))
SPECS = [CacheSpec.of_heads(2, 3, 8), LATENT]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS)
def test_reads_what_was_written_and_nothing_else_changes(spec: CacheSpec, layout: CacheLayoutName) -> None:
    cache = KVCache(spec, whole_sizes(3), layout=layout)
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
    token_major, head_major = (KVCache(spec, whole_sizes(3), layout=layout) for layout in LAYOUTS)
    for cache in (token_major, head_major):
        cache.write(0, torch.tensor([9]), *rows)
    assert torch.equal(token_major.layer(0)[0][2, 1], rows[0, 0])
    assert torch.equal(head_major.layer(0)[1][2, :, 1], rows[1, 0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_that_padding_reads_is_zero(dtype: torch.dtype, layout: CacheLayoutName) -> None:
    cache = KVCache(SPECS[0], whole_sizes(2), dtype, layout=layout)
    for part in cache.read(1, torch.arange(4)):
        assert not part.any()
        assert part.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spec", [*SPECS, WINDOWED])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_takes_what_its_sizes_say(
    dtype: torch.dtype, spec: CacheSpec, layout: CacheLayoutName
) -> None:
    """Beside what all sequences share, the block of zeros."""
    sizes = CacheSizes(8, tuple(GroupSize(4 + n, group.window) for n, group in enumerate(spec.groups)))
    cache = KVCache(spec, sizes, dtype, layout=layout)
    taken = sum(part.nbytes for layer in range(spec.n_layers) for part in cache.layer(layer))
    zeros = CacheSizes(8, tuple(GroupSize(1) for _ in spec.groups))
    assert taken == cache_bytes(spec, sizes, dtype) + cache_bytes(spec, zeros, dtype)


def test_layers_of_a_group_have_as_many_blocks_as_the_group() -> None:
    cache = KVCache(WINDOWED, CacheSizes(4, (GroupSize(9), GroupSize(3, 5))), layout="token_major")
    assert [len(cache.layer(layer)[0]) for layer in range(4)] == [4, 10, 4, 10]
    assert [cache.group_of(layer) for layer in range(4)] == [1, 0, 1, 0]
    for layer in range(4):
        rows = torch.full((1, 3, 8), float(layer)), torch.full((1, 3, 8), -float(layer))
        cache.write(layer, torch.tensor([4]), *rows)
    for layer in range(4):
        keys, values = cache.read(layer, torch.tensor([4]))
        assert (keys == layer).all()
        assert (values == -layer).all()


def test_a_cache_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="MiB cannot be had on cpu"):
        KVCache(SPECS[0], whole_sizes(1 << 45), layout="token_major")
