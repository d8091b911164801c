"""An engine around a model whose experts are open. Part of the composition root, with main.py."""

import logging

from coordinator.config.engine import EngineConfig
from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.cache_sizes import CacheSizes, cache_bytes
from coordinator.engine.cache.kv_cache import KVCache
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.forcing import Forcing
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.observer import EngineObserver
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.pacing import Pace
from coordinator.engine.core.prepared import NO_VOCABULARY, Preparer
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.core.speculation import Speculation
from coordinator.engine.recording.recorder import RoutingRecorder
from coordinator.engine.versions.exchange import ExchangedExperts, ExpertExchange, SwitchEngine
from coordinator.engine.versions.model_versions import ModelVersions
from coordinator.server.cache_budget import cache_sizes, max_context
from coordinator.server.compute import device_of, dtype_of, shared_kernels_of
from coordinator.server.shared_part import SharedPart
from moe_model.checkpoint.reader import Checkpoint, OnBytes
from moe_model.families import family_of
from moe_model.kernels.base import Router
from moe_model.layers.router import RouterWeights
from moe_model.loading import load_model, model_of
from moe_model.versions.running_experts import RunningExperts

logger = logging.getLogger(__name__)


def build_engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: RunningExperts,
    observer: EngineObserver | None = None,
    preparer: Preparer = NO_VOCABULARY,
    on_bytes: OnBytes | None = None,
    part: SharedPart | None = None,
    recorder: RoutingRecorder | None = None,
    forcing: Forcing | None = None,
) -> Engine:
    """Puts an engine around the shared part, which it loads where there is none that is being loaded already.
    Raises CheckpointError, ConfigError."""
    longest, device = max_context(checkpoint.config, config), device_of(config)
    if part is None:
        kernels = shared_kernels_of(config)
        dtype, form = dtype_of(config), config.shared_dtype
        model = load_model(checkpoint, experts, dtype, device, kernels, on_bytes, form)
    else:
        kernels = part.kernels
        model = model_of(checkpoint, part.result(on_bytes), experts, kernels)
    spec = family_of(checkpoint.config).cache_spec(checkpoint.config)
    # What is left of the memory is known now that the weights are there.
    sizes = cache_sizes(checkpoint.config, config)
    cache = KVCache(spec, sizes, dtype_of(config), device, layout=kernels.cache_layout)
    _log_sizes(sizes, longest, cache_bytes(spec, sizes, dtype_of(config)))
    pace = None if config.max_gap_ms is None else Pace(config.max_gap_ms / 1000, sizes.block_size)
    scheduler = Scheduler(
        sizes,
        config.max_num_seqs,
        config.max_step_tokens,
        prefix_caching=config.prefix_caching,
        pace=pace,
        speculation=None if config.speculate is None else Speculation(config.speculate),
    )
    overlap = Overlap(config.micro_batches) if experts.answers_travel else None
    versions = ModelVersions(model, experts, is_forced=forcing is not None)
    is_recorded = None if recorder is None else lambda: recorder.is_on
    runner = ModelRunner(
        *(model, cache, attention_plan(kernels), overlap),
        versions=versions,
        is_recorded=is_recorded,
        forcing=forcing,
    )
    return Engine(scheduler, runner, longest, experts, observer, versions, preparer, recorder)


def _log_sizes(sizes: CacheSizes, longest: int, num_bytes: int) -> None:
    capacity = sizes.capacity_tokens(longest)
    logger.info(
        "cache: holds %d tokens in %d MiB at most; contexts have up to %d", capacity, num_bytes >> 20, longest
    )
    if capacity < longest:
        logger.warning(
            "cache: %d tokens are less than a context of %d: requests that need more are refused; "
            "--kv-cache-mib gives it more memory",
            capacity,
            longest,
        )


def expert_exchange(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: ExchangedExperts,
    engine: Engine,
    switch_engine: SwitchEngine,
) -> ExpertExchange:
    """Changes the experts of an engine of `build_engine`."""
    assert engine.versions is not None, "build_engine's have them"
    kernels = shared_kernels_of(config)
    family = family_of(checkpoint.config)

    def make_router(weights: RouterWeights) -> Router:
        return family.build_router(checkpoint.config, weights, kernels)

    return ExpertExchange(
        checkpoint, experts, engine.versions, switch_engine, make_router, form=config.expert_dtype
    )
