"""What the engine's configuration means to torch, which the configuration itself does not load."""

import torch

from coordinator.config.engine import EngineConfig
from moe_model.checkpoint.manifest import DTYPES
from moe_model.errors import ConfigError
from moe_model.kernels.base import Kernels
from moe_model.kernels.choice import choose_kernels


def dtype_of(config: EngineConfig) -> torch.dtype:
    return DTYPES[config.dtype]


def device_of(config: EngineConfig) -> torch.device:
    """`auto` is a GPU when there is one. Raises ConfigError for a GPU that there is not."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for and torch sees no GPU")
    return torch.device(config.device)


def kernels_of(config: EngineConfig) -> Kernels:
    """Those of experts in this process. Raises ConfigError for what cannot be had."""
    return choose_kernels(config.kernels, device_of(config), config.num_threads, config.instruction_set)


def shared_kernels_of(config: EngineConfig) -> Kernels:
    """Those of the shared part. On a GPU the instruction set is for the experts alone, which may be on
    workers: where they are not, `kernels_of` refuses it. Raises ConfigError for what cannot be had."""
    device = device_of(config)
    instruction_set = config.instruction_set if device.type == "cpu" else "auto"
    return choose_kernels(config.kernels, device, config.num_threads, instruction_set)
