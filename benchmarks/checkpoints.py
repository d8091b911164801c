"""The model that a benchmark runs: one that is named, or ModularForge's default one with random weights."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moe_model.checkpoint.initialise import initialise_checkpoint
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig


@contextmanager
def opened(path: Path | None, dtype: torch.dtype) -> Iterator[Checkpoint]:
    """None: a random 54.6 M model, which ends with the block."""
    if path is not None:
        yield Checkpoint.open(path)
        return
    with tempfile.TemporaryDirectory(prefix="expertmesh-bench-") as folder:
        made = Path(folder) / "random"
        initialise_checkpoint(made, ModelConfig(), dtype=dtype)
        yield Checkpoint.open(made)
