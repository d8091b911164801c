"""What a token takes in the cache of the published models with latent attention: measured, in bfloat16."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from coordinator.engine.cache.kv_cache import KVCache
from moe_model.checkpoint.hugging_face.folder import read_config
from moe_model.config import ModelConfig
from moe_model.families import family_of
from moe_model.kernels.cache_layout import CacheLayoutName
from tests.cache_sizes import whole_sizes

PUBLISHED = Path(__file__).parents[2] / "benchmarks/published"
BLOCK_SIZE, NUM_BLOCKS = 16, 2


def read(name: str) -> ModelConfig:
    path = PUBLISHED / f"{name}.json"
    return read_config(json.loads(path.read_text(encoding="utf-8")), path)[1]


@pytest.mark.parametrize("layout", get_args(CacheLayoutName))
@pytest.mark.parametrize(
    ("name", "num_bytes", "num_expanded"),
    [
        # 512 + 64 numbers of two bytes in each layer; as keys and values of all heads, 192 + 128 for each.
        ("deepseek-v3", 61 * 576 * 2, 61 * 128 * 320 * 2),
        ("kimi-k2", 61 * 576 * 2, 61 * 64 * 320 * 2),
        ("deepseek-v2-lite", 27 * 576 * 2, 27 * 16 * 320 * 2),
        ("moonlight-16b-a3b", 27 * 576 * 2, 27 * 16 * 320 * 2),
    ],
)
def test_bytes_of_a_token(name: str, num_bytes: int, num_expanded: int, layout: CacheLayoutName) -> None:
    config = read(name)
    sizes = whole_sizes(NUM_BLOCKS, BLOCK_SIZE)
    cache = KVCache(family_of(config).cache_spec(config), sizes, torch.bfloat16, layout=layout)
    # The layers' parts are pieces of few storages.
    parts = [part.untyped_storage() for layer in range(config.n_layers) for part in cache.layer(layer)]
    taken = sum({storage.data_ptr(): storage.nbytes() for storage in parts}.values())
    # One block more is that of zeros.
    assert taken == BLOCK_SIZE * (NUM_BLOCKS + 1) * num_bytes
    assert num_expanded // num_bytes == {128: 71, 64: 35, 16: 8}[config.n_heads]
