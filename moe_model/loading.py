"""From a checkpoint on disk to a Model: the shared part here, the experts wherever the caller has them."""

from collections.abc import Iterable

import torch

from moe_model.checkpoint import Checkpoint
from moe_model.dispatch import ExpertKey
from moe_model.experts import ExpertBackend, LocalExperts
from moe_model.families import family_of
from moe_model.kernels.base import ExpertBank, Kernels
from moe_model.kernels.torch_kernels import TorchKernels
from moe_model.model import Model


def load_model(
    checkpoint: Checkpoint,
    experts: ExpertBackend,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels | None = None,
) -> Model:
    """Reads the shared part; `kernels` None: torch's. Raises CheckpointError naming file and tensor."""
    config = checkpoint.config
    tensors = checkpoint.read_shared(dtype, device)
    return Model(config, family_of(config).build_shared(config, tensors, kernels or TorchKernels()), experts)


def load_bank(
    checkpoint: Checkpoint,
    keys: Iterable[ExpertKey],
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels,
    *,
    int8: bool = False,
) -> tuple[ExpertBank, int]:
    """Reads experts, one at a time, and how many bytes their tensors have in memory."""
    config, family = checkpoint.config, family_of(checkpoint.config)
    experts, num_bytes = {}, 0
    for layer, expert in keys:
        tensors = checkpoint.read_expert(layer, expert, dtype, device)
        num_bytes += sum(_num_bytes(tensor, int8=int8) for tensor in tensors.values())
        experts[layer, expert] = family.build_expert(config, tensors, kernels, int8=int8)
    return kernels.bank(experts, config.n_experts), num_bytes


def load_local_experts(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str | torch.device,
    kernels: Kernels | None = None,
    *,
    int8: bool = False,
) -> LocalExperts:
    """Reads every expert into this process. Raises CheckpointError naming the file and the tensor."""
    config = checkpoint.config
    keys = ((layer, expert) for layer in range(config.n_layers) for expert in range(config.n_experts))
    bank, _ = load_bank(checkpoint, keys, dtype, device, kernels or TorchKernels(), int8=int8)
    return LocalExperts(bank)


def _num_bytes(tensor: torch.Tensor, *, int8: bool) -> int:
    return tensor.numel() if int8 and tensor.dim() == 2 else tensor.nbytes
