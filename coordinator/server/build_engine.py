"""An engine around a model whose experts are open. Part of the composition root, with main.py."""

import logging

from coordinator.config.engine import EngineConfig
from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.cache_sizes import CacheSizes, Demand, sizes_for
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.observer import EngineObserver
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.prepared import NO_VOCABULARY, Preparer
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.versions.exchange import ExchangedExperts, ExpertExchange, SwitchEngine
from coordinator.engine.versions.model_versions import ModelVersions
from coordinator.server.compute import device_of, dtype_of
from moe_model.checkpoint.reader import Checkpoint
from moe_model.families import family_of
from moe_model.kernels.base import Router
from moe_model.kernels.choice import choose_kernels
from moe_model.layers.router import RouterWeights
from moe_model.loading import load_model
from moe_model.machine import memory_bytes
from moe_model.versions.running_experts import RunningExperts

logger = logging.getLogger(__name__)

MAX_DEFAULT_KV_BYTES = 1 << 30


def cache_sizes(checkpoint: Checkpoint, config: EngineConfig) -> CacheSizes:
    """Raises ConfigError where the budget is too small for one sequence."""
    most = config.kv_cache_bytes or min(MAX_DEFAULT_KV_BYTES, memory_bytes() // 4)
    spec = family_of(checkpoint.config).cache_spec(checkpoint.config)
    demand = Demand(checkpoint.config.max_seq_len, config.max_num_seqs, config.max_step_tokens)
    return sizes_for(spec, config.block_size, dtype_of(config), demand, most)


def build_engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: RunningExperts,
    observer: EngineObserver | None = None,
    preparer: Preparer = NO_VOCABULARY,
) -> Engine:
    """Loads the shared part and puts an engine around it. Raises CheckpointError, ConfigError."""
    sizes, device = cache_sizes(checkpoint, config), device_of(config)
    kernels = choose_kernels(config.kernels, device, config.num_threads)
    spec = family_of(checkpoint.config).cache_spec(checkpoint.config)
    cache = KVCache(spec, sizes, dtype_of(config), device, layout=kernels.cache_layout)
    model = load_model(checkpoint, experts, dtype_of(config), device, kernels)
    scheduler = Scheduler(
        sizes,
        config.max_num_seqs,
        config.max_step_tokens,
        prefix_caching=config.prefix_caching,
    )
    overlap = Overlap(config.micro_batches) if experts.answers_travel else None
    versions = ModelVersions(model, experts)
    runner = ModelRunner(model, cache, attention_plan(kernels), overlap, versions=versions)
    max_seq_len = checkpoint.config.max_seq_len
    return Engine(scheduler, runner, max_seq_len, experts, observer, versions, preparer)


def expert_exchange(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: ExchangedExperts,
    engine: Engine,
    switch_engine: SwitchEngine,
) -> ExpertExchange:
    """Changes the experts of an engine of `build_engine`."""
    assert engine.versions is not None, "build_engine's have them"
    kernels = choose_kernels(config.kernels, device_of(config), config.num_threads)
    family = family_of(checkpoint.config)

    def make_router(weights: RouterWeights) -> Router:
        return family.build_router(checkpoint.config, weights, kernels)

    return ExpertExchange(checkpoint, experts, engine.versions, switch_engine, make_router)
