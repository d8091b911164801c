"""Models with random weights that steps are measured of: those that overheads are fitted to, and others."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moe_model.checkpoint.initialise import initialise_like
from moe_model.checkpoint.random_model import RandomModel
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.qwen2_moe.config import Qwen2MoeConfig


def _mixtral(**sizes: Any) -> ModelConfig:
    return ModelConfig(family="mixtral", tie_embedding=False, max_seq_len=1024, own=MixtralConfig(), **sizes)


# No two alike in layers, width, vocabulary and experts, so that what a step costs by each can be told apart.
CALIBRATION: Mapping[str, ModelConfig] = {
    "modularforge": ModelConfig(),
    "few-large-experts": _mixtral(
        d_model=1024, n_heads=16, n_kv_heads=4, n_layers=6, d_ff=2048, n_experts=8, top_k=2, vocab_size=8192
    ),
    "many-small-experts": _mixtral(
        d_model=512, n_heads=8, n_kv_heads=8, n_layers=10, d_ff=256, n_experts=16, top_k=4, vocab_size=32000
    ),
}
# For --check: of another family, and of sizes that no model above has.
UNSEEN: Mapping[str, ModelConfig] = {
    "qwen2-like": ModelConfig(
        family="qwen2_moe",
        d_model=640,
        n_heads=10,
        n_layers=8,
        d_ff=320,
        n_experts=24,
        top_k=4,
        vocab_size=20000,
        max_seq_len=1024,
        tie_embedding=False,
        own=Qwen2MoeConfig(shared_width=640),
    ),
    "mixtral-like": _mixtral(
        d_model=1024, n_heads=16, n_kv_heads=4, n_layers=4, d_ff=1792, n_experts=8, top_k=2, vocab_size=16000
    ),
}


@contextmanager
def made(config: ModelConfig, dtype: torch.dtype = torch.bfloat16) -> Iterator[Checkpoint]:
    """A checkpoint of random weights, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="expertmesh-probe-") as folder:
        path = Path(folder) / "model"
        initialise_like(path, RandomModel(config, dtype=dtype))
        yield Checkpoint.open(path)
