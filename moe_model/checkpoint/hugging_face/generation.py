"""What a folder says of sampling, and of the tokens that begin and end a text."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_model.checkpoint.generation_defaults import GenerationDefaults, with_given
from moe_model.checkpoint.hugging_face.folder import read_json
from moe_model.checkpoint.hugging_face.texts import read_settings
from moe_model.checkpoint.manifest import TOKENIZER_CONFIG
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, is_present
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief
from moe_model.text.tokenizer import vocabulary_of

GENERATION_CONFIG = "generation_config.json"


def generation_defaults(
    folder: Path, settings: Mapping[str, Any], config: ModelConfig, tokenizer: bytes | None
) -> tuple[GenerationDefaults, list[str]]:
    """Of generation_config.json where it has a key, else of config.json, else of the tokenizer's own tokens;
    and a note on each value of sampling that is out of range. Raises ConfigError, CheckpointError,
    TokenizerError."""
    path = folder / GENERATION_CONFIG
    given = read_json(path) if is_present(path) else {}
    named = {} if tokenizer is None else _named_tokens(folder, tokenizer, config.vocab_size)

    sources = {path: given, folder / HUGGING_FACE_CONFIG: settings, folder / TOKENIZER_CONFIG: named}

    def token_ids(key: str) -> tuple[int, ...]:
        for file, source in sources.items():
            if (found := source.get(key)) is not None:
                return _ids(f"{file}: {key}", found, config.vocab_size)
        return ()

    defaults = replace(
        GenerationDefaults(),
        bos_token_id=next(iter(token_ids("bos_token_id")), None),
        eos_token_ids=token_ids("eos_token_id"),
        pad_token_id=next(iter(token_ids("pad_token_id")), None),
    )
    defaults.check(config.vocab_size)
    return with_given(defaults, given, config.vocab_size, GENERATION_CONFIG)


def _ids(where: str, found: object, vocab_size: int) -> tuple[int, ...]:
    """One id or a list of them, each once, in their order."""
    ids = found if isinstance(found, list) else [found]
    for each in ids:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise ConfigError(f"{where}: {brief(each)} is no token id, they are in [0, {vocab_size})")
    return tuple(dict.fromkeys(ids))


def _named_tokens(folder: Path, tokenizer: bytes, vocab_size: int) -> dict[str, int]:
    """The ids of the special tokens that tokenizer_config.json names."""
    vocabulary = vocabulary_of(tokenizer, vocab_size)
    named = read_settings(folder).special_tokens
    return {f"{name}_id": vocabulary[text] for name, text in named.items() if text in vocabulary}
