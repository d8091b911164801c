"""Texts of a folder that transformers wrote: the tokens that it makes of them, and the texts of tokens."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from google.protobuf import json_format
from tokenizers import processors

from coordinator.api.shared.served_model import ServedModel
from coordinator.api.text import chat_template
from coordinator.api.validation.request import resolve
from coordinator.config.model import ModelOptions
from coordinator.server.model_facts import read_facts
from coordinator.server.model_texts import ModelTexts
from coordinator.server.open_model import served_model
from expertmesh.v1 import generation_pb2 as pb
from moe_model.checkpoint.reader import Checkpoint
from tests.coordinator.api.text.templates import COLLECTED, LINES, THINKING
from tests.families.cases import CASES
from tests.families.ours import CONFIG, imported
from tests.moe_model.text.libraries import library_of

TEXT = "the café, isn't it? 東京 🙂 <tool> x"
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": TEXT},
    {"role": "assistant", "content": "<think>\nso\n</think>\n\nyes"},
    {"role": "user", "content": "in  there"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
# A kind of tokenizer, its templates, and what its files say of BOS.
FOLDERS: dict[str, tuple[str, Any, str]] = {
    "as Qwen's": ("byte level", THINKING, "$A"),
    "as Mixtral's": ("byte fallback of Llama", COLLECTED, "<bos> $A"),
    "with tools apart": ("unigram", {"default": COLLECTED, "tool_use": LINES}, "<bos> $A <eos>"),
}


@dataclass(frozen=True)
class Both:
    """The tokenizer as transformers loads it from the folder, and the model as it is served from there."""

    library: Any
    model: ServedModel


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, templates, single = FOLDERS[request.param]
    path = tmp_path_factory.mktemp("model")
    sizes = {"vocab_size": 450, "max_position_embeddings": 1024}
    case = replace(CASES["qwen3_moe"], sizes={**CASES["qwen3_moe"].sizes, **sizes})
    case.write(case.make_model(), path)
    backend = library_of(kind)
    special = [(token, backend.token_to_id(token) or 0) for token in ("<bos>", "<eos>")]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    )
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["as it is", "imported"])
def both(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    as_it_is = request.param == "as it is"
    checkpoint = Checkpoint.open(folder) if as_it_is else imported(folder, tmp_path_factory.mktemp("import"))
    library = transformers.AutoTokenizer.from_pretrained(folder)
    facts = read_facts(checkpoint, CONFIG)
    with pytest.MonkeyPatch.context() as patch, closing(ModelTexts.open(facts)) as texts:
        # However busy the machine is: what counts is time on a processor.
        patch.setattr(chat_template, "RENDER_SECONDS", 60.0)
        model = served_model(facts, ModelOptions(), texts)
        assert model.chat_template is not None
        with closing(model.chat_template):
            yield Both(library, model)


def prompt_of(model: ServedModel, **fields: Any) -> list[int]:
    message = json_format.ParseDict(fields, pb.GenerateRequest())
    return list(resolve(message, model, "id", 0.0).request.prompt_ids)


def test_a_texts_tokens(both: Both) -> None:
    expected = both.library(TEXT).input_ids
    if expected[-1] == both.library.eos_token_id:
        # A prompt that ends tells a model to stop.
        expected = expected[:-1]
    assert prompt_of(both.model, text=TEXT) == expected


@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("begins", [True, False])
def test_a_conversations_tokens(both: Both, tools: Any, begins: bool) -> None:
    expected = both.library.apply_chat_template(
        TALK, tools=tools, add_generation_prompt=begins, return_dict=False
    )
    variables = json.dumps({} if tools is None else {"tools": tools})
    chat = {"messages": TALK, "add_generation_prompt": begins, "template_kwargs": variables}
    assert prompt_of(both.model, chat=chat) == expected


@pytest.mark.parametrize("skip", [True, False])
def test_the_text_of_tokens(both: Both, skip: bool) -> None:
    ids = both.library.apply_chat_template(TALK, return_dict=False)
    tokenizer = both.model.require_tokenizer("")
    found = tokenizer.decode([*ids, len(both.library) + 1], skip_special_tokens=skip)
    assert found == both.library.decode(ids, skip_special_tokens=skip)
