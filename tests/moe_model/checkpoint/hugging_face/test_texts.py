"""The tokenizer, special tokens and chat templates of a folder, as transformers finds them there."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from moe_model.checkpoint.hugging_face.texts import read_settings, read_tokenizer
from moe_model.checkpoint.reader import Checkpoint
from moe_model.errors import CheckpointError
from moe_model.text.tokenizer_settings import TokenizerSettings
from tests.moe_model.source_files import write_checkpoint
from tests.moe_model.text.libraries import byte_level

TALK = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def write(folder: Path, config: object = None, **files: str) -> Path:
    """A folder with a tokenizer; `files` by names without their dots, as `chat_template_jinja`."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(byte_level().to_str())
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def theirs(folder: Path) -> Any:
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


LIST = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]


@pytest.mark.parametrize(
    ("config", "jinja", "more"),
    [
        ({"chat_template": "one"}, None, {}),
        ({"chat_template": LIST}, None, {}),
        ({"chat_template": LIST[::-1]}, None, {}),
        ({"chat_template": "one"}, "wins", {}),
        ({"chat_template": LIST}, "wins", {}),
        (None, "wins", {}),
        ({"chat_template": "one"}, "wins", {"tool_use": "tools", "rag": "documents"}),
        ({}, "wins", {"rag": "documents"}),
    ],
)
def test_templates_are_transformers(
    config: object, jinja: str | None, more: dict[str, str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", config, **({} if jinja is None else {"chat_template.jinja": jinja}))
    if more:
        (folder / "additional_chat_templates").mkdir()
    for name, text in more.items():
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text)
    found = read_settings(folder)
    library = theirs(folder)
    assert found.default_template == library.get_chat_template()
    assert (found.tool_template or found.default_template) == library.get_chat_template(tools=TOOLS)


def test_the_form_of_processors_comes_last(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {}, **{"chat_template.json": '{"chat_template": "old"}'})
    assert read_settings(folder).default_template == "old"
    write(folder, {"chat_template": "newer"})
    assert read_settings(folder).default_template == "newer"


NAMED = {
    "bos_token": "<bos>",
    "eos_token": {"__type": "AddedToken", "content": "<eos>", "lstrip": False},
    "pad_token": None,
    "unk_token": "<unk>",
    "image_token": "<image>",
    "extra_special_tokens": {"think_start": "<think>"},
    "add_bos_token": True,
    "model_max_length": 1e30,
}


def test_special_tokens_are_those_that_transformers_gives_a_template(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", NAMED)
    expected = theirs(folder).special_tokens_map
    assert dict(read_settings(folder).special_tokens) == expected
    assert expected["think_start"] == "<think>"


def test_the_older_file_of_special_tokens(tmp_path: Path) -> None:
    old = {"special_tokens_map.json": '{"eos_token": {"content": "<eos>"}, "pad_token": "<pad>"}'}
    folder = write(tmp_path / "model", {"bos_token": "<bos>", "eos_token": "<bos>"}, **old)
    assert dict(read_settings(folder).special_tokens) == theirs(folder).special_tokens_map
    write(folder, {"eos_token": "<bos>", "added_tokens_decoder": {}})
    assert dict(read_settings(folder).special_tokens) == {"eos_token": "<bos>"}


def test_a_snapshot_of_the_cache_is_links(tmp_path: Path) -> None:
    blobs = write(tmp_path / "blobs", {"bos_token": "<bos>"}, **{"chat_template.jinja": "linked"})
    (tmp_path / "snapshot").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert read_tokenizer(tmp_path / "snapshot") == (blobs / "tokenizer.json").read_bytes()
    assert read_settings(tmp_path / "snapshot") == read_settings(blobs)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_link_that_leads_nowhere_is_not_an_absent_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=f"{name}: No such file"):
        read_tokenizer(tmp_path) if name == "tokenizer.json" else read_settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", "[]", "expected an object, got list"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: Expecting"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token: is no text"),
        (
            "tokenizer_config.json",
            '{"add_bos_token": "yes"}',
            "add_bos_token: 'yes' is neither true nor false",
        ),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template: is neither a text nor a list"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a"}]}', "chat_template: is neither"),
        ("tokenizer_config.json", '{"chat_template": ["a"]}', "chat_template: is neither"),
        ("tokenizer_config.json", '{"chat_template": "\\ud800"}', "chat_template: 'default': is no Unicode"),
        ("special_tokens_map.json", "7", "special_tokens_map.json: expected an object"),
        ("special_tokens_map.json", '{"eos_token": 7}', "special_tokens_map.json: eos_token: is no text"),
        ("chat_template.json", '{"chat_template": 1}', "chat_template.json: chat_template: is neither"),
        ("chat_template.jinja", "x" * ((1 << 20) + 1), "chat_template.jinja: has 1048577 bytes"),
        ("chat_template.jinja", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_what_is_wrong_is_named(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_settings(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_templates(tmp_path: Path) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    for number in range(65):
        (tmp_path / "additional_chat_templates" / f"{number}.jinja").touch()
    with pytest.raises(CheckpointError, match="additional_chat_templates: has more than 64 templates"):
        read_settings(tmp_path)


def test_a_tokenizer_in_another_form_is_known_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "tiktoken.model").touch()
    assert read_tokenizer(tmp_path) is None
    assert read_settings(tmp_path).unread == "tiktoken.model"
    assert read_settings(write(tmp_path)).unread == ""


def test_a_tokenizer_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    assert read_tokenizer(tmp_path) == b"{}"


def test_a_checkpoint_of_ours_keeps_all_of_it(tmp_path: Path) -> None:
    settings = TokenizerSettings(
        {"bos_token": "<bos>", "think": "\ud800"}, False, {"default": "D", "tool_use": "T"}
    )
    folder = write_checkpoint(tmp_path / "ours", settings=settings)
    assert Checkpoint.open(folder).read_tokenizer_settings() == settings
    assert (folder / "chat_template.jinja").read_text() == "D"


def test_a_checkpoint_that_says_nothing_adds_bos(tmp_path: Path) -> None:
    found = Checkpoint.open(write_checkpoint(tmp_path / "ours")).read_tokenizer_settings()
    assert found.adds_bos
    assert (dict(found.special_tokens), dict(found.chat_templates)) == ({}, {})
