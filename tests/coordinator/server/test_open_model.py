"""Which chat template a model is served with, and which special tokens it is given."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from coordinator.api.text.chat_template import ChatMessage, ChatTemplate
from coordinator.config.engine import EngineConfig
from coordinator.config.model import ModelOptions
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_model import served_model
from moe_model.checkpoint.generation_defaults import GenerationDefaults
from moe_model.checkpoint.reader import Checkpoint
from moe_model.text.tokenizer_settings import TokenizerSettings
from tests.moe_model.source_files import TINY, write_checkpoint
from tests.moe_model.text.libraries import byte_level

TALK = [ChatMessage(role="user", content="hi")]
TOOLS = {"tools": [{"type": "function"}]}
OPTIONS = ModelOptions()
SAID = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"


@contextmanager
def template_of(
    tmp_path: Path, settings: TokenizerSettings, options: ModelOptions = OPTIONS
) -> Iterator[ChatTemplate]:
    folder = write_checkpoint(
        tmp_path / "ours",
        replace(TINY, vocab_size=300),
        generation=GenerationDefaults(bos_token_id=1, eos_token_ids=(2, 3)),
        tokenizer=byte_level().to_str().encode(),
        settings=settings,
    )
    facts = read_facts(Checkpoint.open(folder), EngineConfig())
    with closing(ModelTexts.open(facts)) as texts:
        found = served_model(facts, options, texts).chat_template
        assert found is not None
        with closing(found):
            yield found


def test_names_of_special_tokens_are_the_files(tmp_path: Path) -> None:
    named = TokenizerSettings({"eos_token": "<pad>", "pad_token": "<unk>"}, True, {"default": SAID})
    with template_of(tmp_path, named) as template:
        assert template.render(TALK) == "|<pad>|<unk>"


def test_where_nothing_names_them_there_are_bos_and_eos(tmp_path: Path) -> None:
    with template_of(
        tmp_path, TokenizerSettings(adds_bos=True, chat_templates={"default": SAID})
    ) as template:
        assert template.render(TALK) == "<bos>|<eos>|"


def test_a_template_that_is_named_takes_the_place_of_all(tmp_path: Path) -> None:
    settings = TokenizerSettings(chat_templates={"default": "D", "tool_use": "T"})
    with template_of(tmp_path, settings) as template:
        assert (template.render(TALK), template.render(TALK, variables=TOOLS)) == ("D", "T")
    file = tmp_path / "mine.jinja"
    file.write_text("mine")
    (tmp_path / "second").mkdir()
    with template_of(tmp_path / "second", settings, ModelOptions(chat_template=file)) as template:
        assert (template.render(TALK), template.render(TALK, variables=TOOLS)) == ("mine", "mine")
