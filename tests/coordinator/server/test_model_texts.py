"""What goes before a text, as transformers has it; and models without a tokenizer that is read."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import processors

from coordinator.config.engine import EngineConfig
from coordinator.engine.messages.model_facts import ModelFacts
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.checkpoint.hugging_face.texts import read_settings, read_tokenizer
from moe_model.checkpoint.reader import Checkpoint
from moe_model.text.tokenizer_settings import TokenizerSettings
from tests.moe_model.source_files import TINY, write_checkpoint
from tests.moe_model.text.libraries import byte_level

CONFIG = replace(TINY, vocab_size=300)
# The model's own files say something else: for generation only.
GENERATION = GenerationDefaults(bos_token_id=7, eos_token_ids=(2,))


def folder_with(tmp_path: Path, config: dict[str, Any], single: str | None) -> Path:
    library = byte_level()
    if single is not None:
        library.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<bos>", 1), ("<eos>", 2), ("<unk>", 3)]
        )
    (tmp_path / "tokenizer.json").write_text(library.to_str())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def facts_of(folder: Path) -> ModelFacts:
    return read_facts(Checkpoint.open(folder), EngineConfig())


def opened(folder: Path, dest: Path) -> ModelTexts:
    """As an import leaves it."""
    tokenizer, settings = read_tokenizer(folder), read_settings(folder)
    write_checkpoint(dest, CONFIG, generation=GENERATION, tokenizer=tokenizer, settings=settings)
    return ModelTexts.open(facts_of(dest))


@pytest.mark.parametrize("single", [None, "$A", "<bos> $A", "<unk> $A <eos>"])
@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<eos>"},
        {"bos_token": "<bos>"},
        {"bos_token": "<bos>", "add_bos_token": False},
        {"eos_token": "<eos>", "add_bos_token": True},
        {"bos_token": "<bos>", "eos_token": "<eos>", "add_eos_token": False},
        {"bos_token": "<unk>", "add_bos_token": False},
    ],
)
def test_what_goes_before_a_text_is_transformers(
    config: dict[str, Any], single: str | None, tmp_path: Path
) -> None:
    folder = folder_with(tmp_path, config, single)
    library = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ours = opened(folder, tmp_path / "ours").tokenizer
    assert ours is not None
    found, expected = ours.encode("hé"), library("hé").input_ids
    # What it puts behind a text is left out of prompts.
    assert found == (expected[:-1] if single is not None and expected[-1] == 2 else expected)


@pytest.mark.parametrize(("single", "first"), [(None, 1), ("$A", 1), ("$A <eos>", 1), ("<unk> $A", 3)])
def test_bos_is_added_where_only_the_config_says_so(single: str | None, first: int, tmp_path: Path) -> None:
    """As DeepSeek's folders do; transformers 5.24 drops that key, its versions before 5 heeded it."""
    folder = folder_with(tmp_path, {"bos_token": "<bos>", "add_bos_token": True}, single)
    tokenizer = opened(folder, tmp_path / "ours").tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("h") == [first, *tokenizer.encode("h", add_bos=False)]


def test_no_config_adds_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    tokenizer = opened(tmp_path, tmp_path / "ours").tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("h") == tokenizer.encode("h", add_bos=False)


def test_a_model_of_its_own_says_bos_by_number(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "ours", CONFIG, generation=GENERATION, tokenizer=byte_level().to_str().encode()
    )
    tokenizer = ModelTexts.open(facts_of(folder)).tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("h")[0] == 7


def test_a_special_token_that_is_none_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = folder_with(tmp_path, {"bos_token": "<bos>", "eos_token": "[END]"}, None)
    with caplog.at_level(logging.WARNING):
        opened(folder, tmp_path / "ours")
    assert caplog.messages == [
        "tokenizer_config.json: eos_token '[END]' is no token of tokenizer.json: it is taken for plain text, "
        "and ends nothing"
    ]


def test_a_tokenizer_in_another_form_is_named_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    facts = facts_of(write_checkpoint(tmp_path / "ours", CONFIG))
    unread = replace(facts, settings=TokenizerSettings(unread="tiktoken.model"))
    with caplog.at_level(logging.WARNING):
        texts = ModelTexts.open(unread)
    assert (texts.tokenizer, texts.constraints, texts.unread) == (None, None, "tiktoken.model")
    assert caplog.messages == [
        "this model has tiktoken.model and no tokenizer.json; use token ids, or convert it to tokenizer.json"
    ]
