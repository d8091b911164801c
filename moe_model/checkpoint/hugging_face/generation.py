"""What a folder says of sampling, and of the tokens that begin and end a text."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_model.checkpoint.generation_defaults import NEUTRAL, GenerationDefaults, with_given
from moe_model.checkpoint.hugging_face.folder import read_json
from moe_model.checkpoint.hugging_face.generation_keys import not_done
from moe_model.checkpoint.hugging_face.texts import read_settings
from moe_model.checkpoint.manifest import TOKENIZER_CONFIG
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, is_present
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError, TokenizerError
from moe_model.files.strict_json import brief
from moe_model.text.tokenizer_json import ids_of

_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION_CONFIG = "generation_config.json"


def generation_defaults(
    folder: Path, settings: Mapping[str, Any], config: ModelConfig, tokenizer: bytes | None
) -> tuple[GenerationDefaults, list[str]]:
    """Of generation_config.json where it has a key, else of config.json, else of the tokenizer's own tokens;
    and a note on each value of sampling that is out of range or not done here. Raises ConfigError,
    CheckpointError, TokenizerError."""
    path = folder / GENERATION_CONFIG
    given = read_json(path) if is_present(path) else {}
    sources = {path: given, folder / HUGGING_FACE_CONFIG: settings}
    if tokenizer is not None and any(_is_missing(key, *sources.values()) for key in _KEYS):
        sources[folder / TOKENIZER_CONFIG] = _named_tokens(folder, tokenizer, config.vocab_size)

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
    defaults, notes = with_given(defaults, given, config.vocab_size, GENERATION_CONFIG, NEUTRAL)
    if given.get("do_sample") is False:
        # The authors' word for greedy decoding; without it, what they say of sampling counts.
        defaults = replace(defaults, temperature=0.0)
    return defaults, [*notes, *not_done(given, GENERATION_CONFIG)]


def _ids(where: str, found: object, vocab_size: int) -> tuple[int, ...]:
    """One id or a list of them, each once, in their order."""
    ids = found if isinstance(found, list) else [found]
    for each in ids:
        if type(each) is not int or not 0 <= each < vocab_size:
            raise ConfigError(f"{where}: {brief(each)} is no token id, they are in [0, {vocab_size})")
    return tuple(dict.fromkeys(ids))


def _named_tokens(folder: Path, tokenizer: bytes, vocab_size: int) -> dict[str, int]:
    """The ids of the special tokens that tokenizer_config.json names."""
    named = read_settings(folder).special_tokens
    texts = {f"{name}_id": text for name, text in named.items() if f"{name}_id" in _KEYS}
    try:
        ids = ids_of(tokenizer, texts.values(), vocab_size) if texts else {}
    except TokenizerError as error:
        raise TokenizerError(f"{folder}: {error}") from None
    return {key: ids[text] for key, text in texts.items() if text in ids}


def _is_missing(key: str, *sources: Mapping[str, Any]) -> bool:
    return all(source.get(key) is None for source in sources)
