"""From a checkpoint on disk to a Model: the shared part here, the experts wherever the caller has them."""

import torch

from moe_model.checkpoint import Checkpoint
from moe_model.experts import ExpertBackend, LocalExperts
from moe_model.families import family_of
from moe_model.model import Model


def load_model(
    checkpoint: Checkpoint, experts: ExpertBackend, dtype: torch.dtype, device: str | torch.device
) -> Model:
    """Reads the shared part. Raises CheckpointError naming the file and the tensor."""
    config = checkpoint.config
    shared = family_of(config).build_shared(config, checkpoint.read_shared(dtype, device))
    return Model(config, shared, experts)


def load_local_experts(
    checkpoint: Checkpoint, dtype: torch.dtype, device: str | torch.device
) -> LocalExperts:
    """Reads every expert into this process. Raises CheckpointError naming the file and the tensor."""
    config, family = checkpoint.config, family_of(checkpoint.config)
    experts = {
        (layer, expert): family.build_expert(config, checkpoint.read_expert(layer, expert, dtype, device))
        for layer in range(config.n_layers)
        for expert in range(config.n_experts)
    }
    return LocalExperts(experts, config.n_experts)
