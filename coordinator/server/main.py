"""The composition root: the one place that knows every class and puts them together."""

import logging
import os
import sys

from torch import Tensor

from coordinator.api.shared.served_model import ServedModel
from coordinator.api.text.chat_template import ChatTemplate
from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.engine.attention.kernel_attention import attention_plan
from coordinator.engine.cache.block_allocator import BlockAllocator
from coordinator.engine.cache.kv_cache import KVCache, num_blocks_for
from coordinator.engine.core.engine import Engine
from coordinator.engine.core.model_runner import ModelRunner
from coordinator.engine.core.observer import EngineObserver
from coordinator.engine.core.overlap import Overlap
from coordinator.engine.core.prepared import NO_VOCABULARY, Preparer
from coordinator.engine.core.scheduler import Scheduler
from coordinator.engine.versions.exchange import ExchangedExperts, ExpertExchange, SwitchEngine
from coordinator.engine.versions.model_versions import ModelVersions
from coordinator.server.compute import device_of, dtype_of
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_workers import API_KEY_VARIABLE
from moe_model.checkpoint.manifest import CHAT_TEMPLATE
from moe_model.checkpoint.reader import MAX_CHAT_TEMPLATE_BYTES, Checkpoint
from moe_model.families import family_of
from moe_model.files.whole_file import read_file
from moe_model.kernels.base import Router
from moe_model.kernels.choice import choose_kernels, set_torch_threads
from moe_model.loading import load_model
from moe_model.machine import memory_bytes, usable_cores
from moe_model.text.tokenizer import Tokenizer
from moe_model.versions.running_experts import RunningExperts

logger = logging.getLogger(__name__)

MAX_DEFAULT_KV_BYTES = 1 << 30
SWITCH_INTERVAL = 0.0005


def configure_process(config: EngineConfig) -> None:
    """Settings that belong to the whole process; called once, by the command that owns it."""
    # The engine lets go of the interpreter at every operation of torch and waits so long to get it back from
    # a busy event loop: with Python's 5 ms an overloaded server loses half of its rate.
    sys.setswitchinterval(SWITCH_INTERVAL)
    set_torch_threads(config.kernels, device_of(config), config.num_threads)
    cores = usable_cores()
    asked = config.num_threads is not None
    count, why = (config.num_threads, "as asked for") if asked else (cores.number, cores.why)
    logger.info("threads: %d (%s)", count, why)


def api_key() -> str | None:
    """The key that the environment may hold."""
    return os.environ.get(API_KEY_VARIABLE) or None


def num_kv_blocks(checkpoint: Checkpoint, config: EngineConfig) -> int:
    most = config.kv_cache_bytes or min(MAX_DEFAULT_KV_BYTES, memory_bytes() // 4)
    model, spec = checkpoint.config, family_of(checkpoint.config).cache_spec(checkpoint.config)
    return num_blocks_for(
        spec, model.max_seq_len, config.block_size, dtype_of(config), config.max_num_seqs, most
    )


def build_engine(
    checkpoint: Checkpoint,
    config: EngineConfig,
    experts: RunningExperts,
    observer: EngineObserver | None = None,
    preparer: Preparer = NO_VOCABULARY,
) -> Engine:
    """Loads the shared part and puts an engine around it. Raises CheckpointError, ConfigError."""
    num_blocks, device = num_kv_blocks(checkpoint, config), device_of(config)
    kernels = choose_kernels(config.kernels, device, config.num_threads)
    spec = family_of(checkpoint.config).cache_spec(checkpoint.config)
    cache = KVCache(
        spec, num_blocks, config.block_size, dtype_of(config), device, layout=kernels.cache_layout
    )
    model = load_model(checkpoint, experts, dtype_of(config), device, kernels)
    scheduler = Scheduler(
        BlockAllocator(num_blocks),
        config.block_size,
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

    def make_router(weight_ED: Tensor) -> Router:
        return family.build_router(checkpoint.config, weight_ED, kernels)

    return ExpertExchange(checkpoint, experts, engine.versions, switch_engine, make_router)


def served_model(
    checkpoint: Checkpoint, options: ModelOptions, config: EngineConfig, texts: ModelTexts
) -> ServedModel:
    """What the fronts know about the model. Raises CheckpointError, ConfigError."""
    tokenizer = texts.tokenizer
    return ServedModel(
        name=options.name or checkpoint.name,
        config=checkpoint.config,
        generation_defaults=checkpoint.generation,
        tokenizer=tokenizer,
        architecture=family_of(checkpoint.config).architecture,
        max_output_tokens=options.max_output_tokens,
        kv_capacity_tokens=num_kv_blocks(checkpoint, config) * config.block_size,
        aliases=options.aliases,
        default_overflow=options.context_overflow,
        chat_template=_chat_template(checkpoint, options, tokenizer),
        constraints=texts.constraints,
        max_num_sequences=options.max_num_sequences,
        allow_routed_experts=options.allow_routed_experts,
        generation_config=options.generation_config,
    )


def _chat_template(
    checkpoint: Checkpoint, options: ModelOptions, tokenizer: Tokenizer | None
) -> ChatTemplate | None:
    """The file that was named, else the checkpoint's own."""
    if options.chat_template is not None:
        data = read_file(options.chat_template, max_size=MAX_CHAT_TEMPLATE_BYTES, follow_links=True)
        source: str | None = data.decode(errors="replace")
        name = options.chat_template.name
    else:
        source = checkpoint.read_chat_template()
        name = CHAT_TEMPLATE
    if source is None or tokenizer is None:
        return None
    special = {"bos_token": checkpoint.generation.bos_token_id}
    special["eos_token"] = next(iter(checkpoint.generation.eos_token_ids), None)
    texts = {name: _text_of(tokenizer, token_id) for name, token_id in special.items()}
    return ChatTemplate(source, **texts, name=name)


def _text_of(tokenizer: Tokenizer, token_id: int | None) -> str:
    return "" if token_id is None else tokenizer.token_bytes(token_id).decode(errors="replace")
