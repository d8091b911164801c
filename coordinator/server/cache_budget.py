"""How large the cache of a model is: the longest context, and the memory that there is for it."""

import torch

from coordinator.config.engine import EngineConfig
from coordinator.engine.cache.cache_sizes import CacheSizes, Demand, sizes_for
from coordinator.server.compute import device_of, dtype_of
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import family_of
from moe_model.machine import available_bytes

# Of the memory that is left when the weights are loaded: the rest is for the rows of steps, and for experts
# that a worker on the same machine takes over from another.
SHARE_OF_MEMORY = 0.5
# A GPU has no other user.
SHARE_OF_GPU = 0.8
# Far more than any cache is of use for, and far below what a product of sizes overflows.
PLENTY = 1 << 80


def max_context(model: ModelConfig, config: EngineConfig) -> int:
    """Most positions of a sequence. Raises ConfigError where more are asked for than the model has."""
    if config.max_context is None:
        return model.max_seq_len
    if config.max_context > model.max_seq_len:
        raise ConfigError(
            f"--max-context: {config.max_context} is more than the {model.max_seq_len} positions of the model"
        )
    return config.max_context


def foreseen_sizes(model: ModelConfig, config: EngineConfig) -> CacheSizes:
    """Before the weights are loaded: as `cache_sizes` if memory is plenty. Raises ConfigError."""
    return _sizes(model, config, config.kv_cache_bytes or PLENTY)


def cache_sizes(model: ModelConfig, config: EngineConfig) -> CacheSizes:
    """When the weights are loaded. Raises ConfigError where the budget is too small for one sequence."""
    return _sizes(model, config, config.kv_cache_bytes or share_of_memory(device_of(config)))


def share_of_memory(device: torch.device) -> int:
    """What a cache may take of the memory that is left."""
    if device.type == "cuda":
        return int(SHARE_OF_GPU * torch.cuda.mem_get_info(device)[0])
    return int(SHARE_OF_MEMORY * available_bytes())


def _sizes(model: ModelConfig, config: EngineConfig, max_bytes: int) -> CacheSizes:
    demand = Demand(max_context(model, config), config.max_num_seqs, config.max_step_tokens)
    spec = family_of(model).cache_spec(model)
    return sizes_for(spec, config.block_size, dtype_of(config), demand, max_bytes)
