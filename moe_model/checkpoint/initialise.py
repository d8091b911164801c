"""A randomly initialised checkpoint, written one expert at a time."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from moe_model.checkpoint.manifest import GenerationDefaults
from moe_model.checkpoint.random_model import RandomModel, module_generator
from moe_model.checkpoint.writer import CheckpointWriter, Progress
from moe_model.config import ModelConfig
from moe_model.families import family_of

Tensors = dict[str, Tensor]


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

    def shared() -> Tensors:
        return family.init_shared(config, module_generator(seed, "shared"))

    def expert(layer: int, expert: int) -> Tensors:
        return family.init_expert(config, module_generator(seed, "expert", layer, expert))

    with CheckpointWriter(dest, config, dtype, GenerationDefaults(), force=force) as writer:
        _write(writer, config, shared, expert, on_progress)


def initialise_like(
    dest: str | Path, model: RandomModel, *, force: bool = False, on_progress: Progress | None = None
) -> None:
    """Writes what a model in the shapes of another draws.

    Raises CheckpointError if `dest` is taken or cannot be written.
    """
    with CheckpointWriter(dest, model.config, model.dtype, model.generation, force=force) as writer:
        _write(writer, model.config, model.read_shared, model.read_expert, on_progress)


def _write(
    writer: CheckpointWriter,
    config: ModelConfig,
    shared: Callable[[], Tensors],
    expert: Callable[[int, int], Tensors],
    on_progress: Progress | None,
) -> None:
    writer.write_shared(shared())
    for layer in config.moe_layers:
        for index in config.experts_of(layer):
            if on_progress is not None:
                on_progress(writer.num_files, 1 + config.num_expert_modules)
            writer.write_expert(layer, index, expert(layer, index))
