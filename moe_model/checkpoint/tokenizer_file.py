"""The tokenizer that comes along, and what its special tokens say about generation."""

import json
from dataclasses import replace
from pathlib import Path

from moe_model.checkpoint.manifest import CHAT_TEMPLATE, TOKENIZER, GenerationDefaults
from moe_model.checkpoint.reader import MAX_CHAT_TEMPLATE_BYTES
from moe_model.checkpoint.recognise import refuse_pointer
from moe_model.errors import CheckpointError, TokenizerError
from moe_model.files.whole_file import read_file
from moe_model.text.tokenizer import vocabulary_of
from moe_model.text.tokenizer_json import MAX_TOKENIZER_BYTES

TOKENIZER_CONFIG = "tokenizer_config.json"


def read_tokenizer(folder: Path) -> bytes | None:
    """The bytes of tokenizer.json in `folder`, None without one. Raises CheckpointError, TokenizerError."""
    path = folder / TOKENIZER
    if not path.exists():
        return None
    refuse_pointer(path)
    data = bytes(read_file(path, max_size=MAX_TOKENIZER_BYTES, follow_links=True))
    try:
        vocabulary_of(data)
    except TokenizerError as error:
        raise TokenizerError(f"{path.parent}: {error}") from None
    return data


def read_chat_template(folder: Path) -> str | None:
    """chat_template.jinja in `folder`, or what tokenizer_config.json has under `chat_template`.

    None without either. Raises CheckpointError.
    """
    path = folder / CHAT_TEMPLATE
    if path.exists():
        return _text(path)
    config = folder / TOKENIZER_CONFIG
    if not config.exists():
        return None
    try:
        data = json.loads(_text(config))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{config}: is not JSON") from None
    template = data.get("chat_template") if isinstance(data, dict) else None
    if isinstance(template, list):
        template = next((each["template"] for each in template if _is_default(each)), None)
    return template if isinstance(template, str) else None


def _is_default(template: object) -> bool:
    """Of a list of named templates."""
    return isinstance(template, dict) and template.get("name") == "default" and "template" in template


def _text(path: Path) -> str:
    refuse_pointer(path)
    try:
        return read_file(path, max_size=MAX_CHAT_TEMPLATE_BYTES, follow_links=True).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8") from None


def with_token_ids(defaults: GenerationDefaults, tokenizer: bytes, vocab_size: int) -> GenerationDefaults:
    """Fills in BOS, EOS and PAD. Raises TokenizerError for a token id that the model does not have."""
    vocabulary = vocabulary_of(tokenizer, vocab_size)
    eos = vocabulary.get("<eos>")
    return replace(
        defaults,
        bos_token_id=vocabulary.get("<bos>"),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=vocabulary.get("<pad>"),
    )
