"""A randomly initialised checkpoint, written one expert at a time."""

import hashlib
from pathlib import Path

import torch

from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.checkpoint.writer import CheckpointWriter, Progress
from moe_model.config import ModelConfig
from moe_model.families import family_of


def module_generator(seed: int, kind: str, layer: int = 0, expert: int = 0) -> torch.Generator:
    """Random numbers of one module, which depend on nothing but what it is: modules can come in any order."""
    digest = hashlib.sha256(f"{seed}/{kind}/{layer}/{expert}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def initialise_checkpoint(
    dest: str | Path,
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    force: bool = False,
    on_progress: Progress | None = None,
) -> None:
    """Writes random weights by the family's own scheme; no tokenizer, and no token that ends a text.

    Raises CheckpointError if `dest` is taken or cannot be written.
    """
    family = family_of(config)
    num_files = 1 + config.num_expert_modules
    with CheckpointWriter(dest, config, dtype, GenerationDefaults(), force=force) as writer:
        writer.write_shared(family.init_shared(config, module_generator(seed, "shared")))
        for layer in config.moe_layers:
            for expert in config.experts_of(layer):
                if on_progress is not None:
                    on_progress(writer.num_files, num_files)
                generator = module_generator(seed, "expert", layer, expert)
                writer.write_expert(layer, expert, family.init_expert(config, generator))
