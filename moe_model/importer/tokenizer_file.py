"""The tokenizer that comes along, and what its special tokens say about generation."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tokenizers

from moe_model.checkpoint import MAX_TOKENIZER_BYTES
from moe_model.errors import TokenizerError
from moe_model.files import read_file
from moe_model.manifest import TOKENIZER, GenerationDefaults
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
