"""What the engine's side tells fronts of a model that it has opened. Part of the composition root."""

from dataclasses import replace

from coordinator.config.engine import EngineConfig
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.server.cache_budget import foreseen_sizes, max_context
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import FamilyConfig
from moe_model.families import family_of
from moe_model.text.tokenizer_settings import TokenizerSettings


def read_facts(checkpoint: Checkpoint, config: EngineConfig) -> ModelFacts:
    """Before the weights are loaded. Raises CheckpointError, ConfigError."""
    context = max_context(checkpoint.config, config)
    return ModelFacts(
        name=checkpoint.name,
        architecture=family_of(checkpoint.config).architecture,
        config=replace(checkpoint.config, max_seq_len=context, own=FamilyConfig()),
        generation=checkpoint.generation,
        kv_capacity_tokens=foreseen_sizes(checkpoint.config, config).capacity_tokens(context),
        tokenizer=checkpoint.read_tokenizer(),
        settings=_plain(checkpoint.read_tokenizer_settings()),
    )


def _plain(settings: TokenizerSettings) -> TokenizerSettings:
    """With mappings that a message can have."""
    return replace(
        settings,
        special_tokens=dict(settings.special_tokens),
        chat_templates=dict(settings.chat_templates),
    )
