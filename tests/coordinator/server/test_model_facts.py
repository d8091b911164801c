"""What fronts are told of a model: all of it survives the way to another process."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.config.engine import EngineConfig
from coordinator.engine.messages.codec import decode, encode
from coordinator.server.model_facts import read_facts
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import FamilyConfig, ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.text.tokenizer_settings import TokenizerSettings
from tests.moe_model.source_files import TINY, write_checkpoint
from tests.moe_model.text.libraries import byte_level

CONFIG = replace(TINY, vocab_size=300)
GENERATION = GenerationDefaults(temperature=0.5, bos_token_id=1, eos_token_ids=(2, 3))
SETTINGS = TokenizerSettings(
    {"eos_token": "<eos>"}, adds_bos=True, chat_templates={"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
)
TOKENIZER = byte_level().to_str().encode()


def checkpoint_at(folder: Path, config: ModelConfig = CONFIG) -> Checkpoint:
    written = write_checkpoint(folder, config, generation=GENERATION, tokenizer=TOKENIZER, settings=SETTINGS)
    return Checkpoint.open(written)


def test_they_say_what_the_checkpoint_says(tmp_path: Path) -> None:
    facts = read_facts(checkpoint_at(tmp_path / "ours"), EngineConfig(max_num_seqs=3))
    assert (facts.name, facts.architecture) == ("ours", "AssembledMoEModel")
    assert facts.config == replace(CONFIG, own=FamilyConfig())
    assert (facts.generation, facts.tokenizer, facts.settings) == (GENERATION, TOKENIZER, SETTINGS)
    assert facts.kv_capacity_tokens == 3 * 16
    # Megabytes have no place in a log.
    assert "tokenizer=" not in repr(facts)


def test_they_survive_the_way(tmp_path: Path) -> None:
    facts = read_facts(checkpoint_at(tmp_path / "ours"), EngineConfig())
    assert decode(encode(facts)) == facts


def test_what_a_family_alone_has_stays_behind(tmp_path: Path) -> None:
    config = ModelConfig(
        family="mixtral",
        d_model=16,
        n_heads=2,
        n_layers=2,
        d_ff=8,
        n_experts=2,
        vocab_size=300,
        own=MixtralConfig(),
    )
    facts = read_facts(checkpoint_at(tmp_path / "mixtral", config), EngineConfig())
    assert facts.config == replace(config, own=FamilyConfig())
    assert decode(encode(facts)) == facts


def test_a_shorter_context_is_the_models(tmp_path: Path) -> None:
    checkpoint = checkpoint_at(tmp_path / "ours")
    assert read_facts(checkpoint, EngineConfig(max_context=5)).config.max_seq_len == 5
    with pytest.raises(ConfigError, match="--max-context"):
        read_facts(checkpoint, EngineConfig(max_context=CONFIG.max_seq_len + 1))
