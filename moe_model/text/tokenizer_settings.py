"""What the files beside a tokenizer say: special tokens by name, BOS, chat templates. Reads no files.

The form is that of Hugging Face's tokenizer_config.json; what transformers does with each key was read in its
version 5.24.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Self

from moe_model.errors import CheckpointError, ConfigError
from moe_model.files import strict_json
from moe_model.files.strict_json import brief

# Where the default template may be a file of its own.
CHAT_TEMPLATE = "chat_template.jinja"
DEFAULT = "default"
TOOL_USE = "tool_use"
MAX_TEMPLATES = 64
MAX_CHAT_TEMPLATE_BYTES = 1 << 20
MAX_SETTINGS_BYTES = 16 << 20
MAX_SPECIAL_TOKENS = 1024
MAX_SPECIAL_CHARS = 4096

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """`special_tokens`: texts by name (`bos_token`, ...).

    `adds_bos`: whether BOS goes before a text where the tokenizer.json's post-processor puts nothing there.
    `chat_templates`: sources by name, of which `default` and `tool_use` mean something. `unread`: the file
    of a tokenizer in a form that nothing here reads, where there is no other.
    """

    special_tokens: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    adds_bos: bool = False
    chat_templates: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    unread: str = ""

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Of a tokenizer_config.json. Raises ConfigError naming the key."""
        adds_bos = data.get("add_bos_token")
        if not isinstance(adds_bos, bool | None):
            raise ConfigError(f"add_bos_token: {brief(adds_bos)} is neither true nor false")
        return cls(special_tokens(data), bool(adds_bos), chat_templates(data.get("chat_template")))

    @classmethod
    def from_json(cls, data: bytes | bytearray, where: str) -> Self:
        """Of a whole file, which errors call `where`. Raises CheckpointError."""
        try:
            return cls.parse(json_object(data))
        except (ValueError, ConfigError) as error:
            raise CheckpointError(f"{where}: {error}") from None

    @property
    def default_template(self) -> str | None:
        """What renders a conversation without tools."""
        return self.chat_templates.get(DEFAULT)

    @property
    def tool_template(self) -> str | None:
        """What renders one with tools, where they have a template of their own."""
        return self.chat_templates.get(TOOL_USE)

    def with_default_template(self, source: str | None) -> "TokenizerSettings":
        """With `source` in the place of its own."""
        templates = dict(self.chat_templates)
        templates.pop(DEFAULT, None)
        return replace(self, chat_templates=templates if source is None else {DEFAULT: source, **templates})

    def to_bytes(self) -> bytes:
        """A tokenizer_config.json of which `parse` makes the same, but for the default template, which has a
        file of its own."""
        others = [(name, text) for name, text in self.chat_templates.items() if name != DEFAULT]
        data = {
            "add_bos_token": self.adds_bos,
            "extra_special_tokens": dict(self.special_tokens),
            "chat_template": [{"name": name, "template": text} for name, text in others],
        }
        return (json.dumps(data, indent=2) + "\n").encode()


# What a checkpoint of ours without a file of them has: BOS goes before every text.
UNSAID = TokenizerSettings(adds_bos=True)


def json_object(data: bytes | bytearray) -> dict[str, Any]:
    """Raises ValueError for what is none."""
    found = strict_json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, got {type(found).__name__}")
    return found


def special_tokens(data: Mapping[str, Any]) -> Mapping[str, str]:
    """The texts of all keys that end in `_token`, and those that `extra_special_tokens` names.

    Raises ConfigError.
    """
    extra = data.get("extra_special_tokens")
    named = {key: value for key, value in data.items() if key.endswith("_token")}
    named |= extra if isinstance(extra, dict) else {}
    found = {}
    for name, value in named.items():
        text = value.get("content") if isinstance(value, dict) else value
        if text is None or isinstance(text, bool):
            continue
        if not isinstance(text, str) or len(text) > MAX_SPECIAL_CHARS:
            raise ConfigError(f"{name[:80]}: is no text of at most {MAX_SPECIAL_CHARS} characters")
        found[name] = text
    if len(found) > MAX_SPECIAL_TOKENS:
        raise ConfigError(f"names {len(found)} special tokens, at most {MAX_SPECIAL_TOKENS} are allowed")
    return MappingProxyType(found)


def chat_templates(value: object) -> Mapping[str, str]:
    """Of a text, a list of `{name, template}`, or an object. Raises ConfigError for another form."""
    if value is None:
        return _NOTHING
    if isinstance(value, str):
        value = {DEFAULT: value}
    elif isinstance(value, list):
        value = dict(_named_template(each) for each in value)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ConfigError(
            "chat_template: is neither a text nor a list of objects with the texts name and template"
        )
    if len(value) > MAX_TEMPLATES:
        raise ConfigError(f"chat_template: has {len(value)} templates, at most {MAX_TEMPLATES} are allowed")
    for name, text in value.items():
        try:
            fits = len((name + text).encode()) <= MAX_CHAT_TEMPLATE_BYTES
        except UnicodeEncodeError:
            fits = False
        if not fits:
            raise ConfigError(
                f"chat_template: {brief(name)}: is no Unicode of at most {MAX_CHAT_TEMPLATE_BYTES} bytes"
            )
    return MappingProxyType(value)


def _named_template(value: object) -> tuple[object, object]:
    """A pair that is no pair of texts is found out by the caller."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "", None
    return value["name"], value.get("template")
