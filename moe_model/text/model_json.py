"""The `model` of a tokenizer.json: its vocabulary and what it cuts words with, checked before it is built."""

import math
from collections.abc import Mapping
from typing import Any

from moe_model.files.strict_json import brief
from moe_model.text.token_kinds import MAX_AFFIX_CHARS

MAX_TOKEN_CHARS = 4096
# Of WordPiece, which tries every end of a word for each beginning.
MAX_WORD_CHARS = 256
# Of a Unigram's tokens together, for each byte of which the library takes a hundred.
_BYTES_PER_PIECE, _MORE_PIECE_BYTES, _MAX_PIECE_BYTES = 64, 64 << 10, 8 << 20
MODELS = ("BPE", "WordPiece", "WordLevel", "Unigram")


def model_type(model: Mapping[str, Any]) -> object:
    """Files of old have none; those are BPE here."""
    return model.get("type", "BPE")


def slow_model(model: Mapping[str, Any]) -> str | None:
    """A model that tries many pieces for each character of a text; None for the others."""
    kind = model_type(model)
    return f"model: {brief(kind)}" if kind in ("Unigram", "WordPiece") else None


def check_model(model: Mapping[str, Any], vocab_size: int) -> None:
    """Raises ValueError naming the key."""
    kind = model_type(model)
    if kind not in MODELS:
        raise ValueError(f"model is of type {brief(kind)}, not of {', '.join(MODELS)}")
    if model.get("dropout"):
        raise ValueError("model: dropout is for training: texts would have other tokens every time")
    if kind == "Unigram":
        _check_scored(model, vocab_size)
    else:
        _check_named(model, vocab_size)
    if kind == "WordPiece":
        longest = model.get("max_input_chars_per_word", 100)
        if type(longest) is not int or not 1 <= longest <= MAX_WORD_CHARS:
            raise ValueError(
                f"model: max_input_chars_per_word {brief(longest)} is not in [1, {MAX_WORD_CHARS}]"
            )


def ids_by_token(model: Mapping[str, Any]) -> dict[str, int]:
    """Of a checked model."""
    if isinstance(vocab := model["vocab"], list):
        return {token: token_id for token_id, (token, _) in enumerate(vocab)}
    return dict(vocab)


def check_token(token: str, token_id: object, vocab_size: int) -> None:
    """Raises ValueError for one that no model has."""
    if len(token) > MAX_TOKEN_CHARS:
        raise ValueError(f"token {token[:40]!r}... has {len(token)} characters, more than {MAX_TOKEN_CHARS}")
    if type(token_id) is not int or not 0 <= token_id < vocab_size:
        shown = brief(token_id)
        raise ValueError(f"token {token[:80]!r} has id {shown}, the model's vocab_size is {vocab_size}")


def _check_named(model: Mapping[str, Any], vocab_size: int) -> None:
    """A vocabulary of ids by texts."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise ValueError("model: vocab is not an object")
    # Two names of one id are not more ids.
    _check_number(len(vocab), 2 * vocab_size, vocab_size)
    for token, token_id in vocab.items():
        check_token(token, token_id, vocab_size)
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        value, most = model.get(key), MAX_TOKEN_CHARS if key == "unk_token" else MAX_AFFIX_CHARS
        if value is not None and not (isinstance(value, str) and len(value) <= most):
            raise ValueError(f"model: {key} is no text of at most {most} characters")
    if model.get("unk_token") is not None and model["unk_token"] not in vocab:
        raise ValueError(f"model: unk_token {brief(model['unk_token'])} is not in the vocabulary")


def _check_scored(model: Mapping[str, Any], vocab_size: int) -> None:
    """A list of texts, each with its score; the places are the ids."""
    vocab = model.get("vocab")
    if not isinstance(vocab, list):
        raise ValueError("model: vocab is not a list")
    _check_number(len(vocab), vocab_size, vocab_size)
    for token_id, entry in enumerate(vocab):
        match entry:
            case [str(token), float() | int() as score] if math.isfinite(score):
                check_token(token, token_id, vocab_size)
            case _:
                raise ValueError(f"model: vocab: entry {token_id} is no text and its score")
    num_bytes = sum(len(token.encode(errors="surrogatepass")) for token, _ in vocab)
    most = min(_BYTES_PER_PIECE * vocab_size + _MORE_PIECE_BYTES, _MAX_PIECE_BYTES)
    if num_bytes > most:
        raise ValueError(f"model: vocab has {num_bytes} bytes of tokens, at most {most} are allowed")
    unknown = model.get("unk_id")
    if unknown is not None and not (type(unknown) is int and 0 <= unknown < len(vocab)):
        raise ValueError(f"model: unk_id {brief(unknown)} is not in the vocabulary")


def _check_number(number: int, most: int, vocab_size: int) -> None:
    if number > most:
        raise ValueError(f"model: vocab has {number} tokens, the model's vocab_size is {vocab_size}")
