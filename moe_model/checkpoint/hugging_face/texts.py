"""What a folder has for texts: its tokenizer, its special tokens, its chat templates. Follows links."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe_model.checkpoint.manifest import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from moe_model.checkpoint.recognise import is_present, refuse_pointer
from moe_model.errors import CheckpointError, ConfigError
from moe_model.files.whole_file import read_file
from moe_model.text.tokenizer_json import MAX_TOKENIZER_BYTES
from moe_model.text.tokenizer_settings import (
    DEFAULT,
    MAX_CHAT_TEMPLATE_BYTES,
    MAX_SETTINGS_BYTES,
    MAX_TEMPLATES,
    TokenizerSettings,
    chat_templates,
    json_object,
)

SPECIAL_TOKENS_MAP = "special_tokens_map.json"
MORE_TEMPLATES = "additional_chat_templates"
# The form of multimodal processors.
OLD_TEMPLATE = "chat_template.json"
# Tokenizers in other forms, the most telling name first.
OTHER_TOKENIZERS = (
    "tiktoken.model",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)


def read_tokenizer(folder: Path) -> bytes | None:
    """The bytes of tokenizer.json, None without one. Raises CheckpointError.

    They are not looked at: a worker opens a model, too, and has no use for its texts.
    """
    path = folder / TOKENIZER
    return _read(path, MAX_TOKENIZER_BYTES) if is_present(path) else None


def read_settings(folder: Path) -> TokenizerSettings:
    """Of tokenizer_config.json and the files of templates; the same precedence as in transformers.

    Raises CheckpointError naming file and key.
    """
    path = folder / TOKENIZER_CONFIG
    data = _json(path) if is_present(path) else {}
    settings = _settings(data, path)
    special, old = settings.special_tokens, folder / SPECIAL_TOKENS_MAP
    if "added_tokens_decoder" not in data and is_present(old):
        special = MappingProxyType({**special, **_settings(_json(old), old).special_tokens})
    templates = _template_files(folder) or settings.chat_templates or _old_template(folder)
    unread = "" if is_present(folder / TOKENIZER) else _unread(folder)
    return TokenizerSettings(special, settings.adds_bos, templates, unread)


def _settings(data: Mapping[str, Any], path: Path) -> TokenizerSettings:
    try:
        return TokenizerSettings.parse(data)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _unread(folder: Path) -> str:
    return next((name for name in OTHER_TOKENIZERS if is_present(folder / name)), "")


def _template_files(folder: Path) -> Mapping[str, str]:
    """chat_template.jinja and the named ones beside it: together they take the place of all others."""
    more = folder / MORE_TEMPLATES
    paths = {DEFAULT: folder / CHAT_TEMPLATE} if is_present(folder / CHAT_TEMPLATE) else {}
    if more.is_dir():
        found = sorted(islice(more.glob("*.jinja"), MAX_TEMPLATES + 1))
        if len(found) > MAX_TEMPLATES:
            raise CheckpointError(f"{more}: has more than {MAX_TEMPLATES} templates")
        paths |= {path.stem: path for path in found}
    return MappingProxyType({name: _text(path) for name, path in paths.items()})


def _old_template(folder: Path) -> Mapping[str, str]:
    path = folder / OLD_TEMPLATE
    if not is_present(path):
        return {}
    try:
        return chat_templates(_json(path).get("chat_template"))
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json_object(_read(path, MAX_SETTINGS_BYTES))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _text(path: Path) -> str:
    try:
        return _read(path, MAX_CHAT_TEMPLATE_BYTES).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8") from None


def _read(path: Path, max_size: int) -> bytes:
    refuse_pointer(path)
    return bytes(read_file(path, max_size=max_size, follow_links=True))
