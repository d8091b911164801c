"""The tokenizer that comes along, and what its special tokens say about generation."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tokenizers

from moe_model.checkpoint import MAX_CHAT_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES
from moe_model.errors import CheckpointError, TokenizerError
from moe_model.files import read_file
from moe_model.manifest import CHAT_TEMPLATE, TOKENIZER, GenerationDefaults
from moe_model.tokenizer import Tokenizer


def read_tokenizer(folder: Path) -> bytes | None:
    """The bytes of tokenizer.json in `folder`, None without one. Raises CheckpointError, TokenizerError."""
    path = folder / TOKENIZER
    if not path.exists():
        return None
    data = bytes(read_file(path, max_size=MAX_TOKENIZER_BYTES, follow_links=True))
    try:
        Tokenizer.from_bytes(data)
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
    config = folder / "tokenizer_config.json"
    if not config.exists():
        return None
    try:
        data = json.loads(_text(config))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{config}: is not JSON") from None
    template = data.get("chat_template") if isinstance(data, dict) else None
    return template if isinstance(template, str) else None


def _text(path: Path) -> str:
    try:
        return read_file(path, max_size=MAX_CHAT_TEMPLATE_BYTES, follow_links=True).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: is not UTF-8") from None


def with_token_ids(defaults: GenerationDefaults, tokenizer: bytes, vocab_size: int) -> GenerationDefaults:
    """Fills in BOS, EOS and PAD. Raises TokenizerError for a token id that the model does not have."""
    vocabulary = _vocabulary(tokenizer)
    token, token_id = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if token_id >= vocab_size:
        raise TokenizerError(
            f"{TOKENIZER}: token {token[:80]!r} has id {token_id}, the model's vocab_size is {vocab_size}"
        )
    eos = vocabulary.get("<eos>")
    return replace(
        defaults,
        bos_token_id=vocabulary.get("<bos>"),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=vocabulary.get("<pad>"),
    )


def _vocabulary(tokenizer: bytes) -> Mapping[str, int]:
    """All tokens of a file that has been read successfully before."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.decode("utf-8"))
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    return vocabulary
