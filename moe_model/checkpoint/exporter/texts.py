"""The files of a folder that hold no tensors, but for config.json: sampling, tokens, chat templates."""

import json
from collections.abc import Mapping
from typing import Any

from moe_model.checkpoint.generation_defaults import NEUTRAL, GenerationDefaults
from moe_model.checkpoint.hugging_face.generation import GENERATION_CONFIG
from moe_model.checkpoint.manifest import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG
from moe_model.text.tokenizer_settings import DEFAULT, TokenizerSettings

# Of a tokenizer.json of whichever kind.
_TOKENIZER_CLASS = "PreTrainedTokenizerFast"


def token_ids(generation: GenerationDefaults) -> dict[str, Any]:
    """Of the tokens that begin, end and fill a text."""
    eos = list(generation.eos_token_ids)
    return {
        "bos_token_id": generation.bos_token_id,
        "eos_token_id": eos if len(eos) > 1 else next(iter(eos), None),
        "pad_token_id": generation.pad_token_id,
    }


def generation_file(generation: GenerationDefaults) -> Mapping[str, bytes]:
    """`top_k` 0 is said: the library's own default is another."""
    data = {
        **{name: value for name, value in token_ids(generation).items() if value is not None},
        "do_sample": generation.temperature > 0,
        **{name: getattr(generation, name) for name in NEUTRAL},
    }
    return {GENERATION_CONFIG: as_json(data)}


def tokenizer_files(tokenizer: bytes | None, settings: TokenizerSettings) -> Mapping[str, bytes]:
    """None where the model has no tokenizer."""
    if tokenizer is None:
        return {}
    more = [
        {"name": name, "template": text} for name, text in settings.chat_templates.items() if name != DEFAULT
    ]
    special = settings.special_tokens
    named = {name: text for name, text in special.items() if name.endswith("_token")}
    data: dict[str, Any] = {"tokenizer_class": _TOKENIZER_CLASS, **named, "add_bos_token": settings.adds_bos}
    # Under any other name a key of the file itself is no token.
    if others := {name: text for name, text in special.items() if name not in named}:
        data["extra_special_tokens"] = others
    files = {TOKENIZER: tokenizer}
    if settings.default_template is not None and not more:
        files[CHAT_TEMPLATE] = settings.default_template.encode()
    elif more:
        default = settings.default_template
        first = [] if default is None else [{"name": DEFAULT, "template": default}]
        data["chat_template"] = first + more
    return files | {TOKENIZER_CONFIG: as_json(data)}


def as_json(data: object) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
