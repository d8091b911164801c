"""The special tokens that a tokenizer.json's `post_processor` puts before a text.

What it puts behind one (EOS, [SEP]) is read, and left to callers: a prompt that ends tells a model to stop.
"""

from collections.abc import Sequence
from typing import Any

from moe_model.files.strict_json import brief

MAX_PIECES = 64
_DEEPEST = 8


def prefix_of(post_processor: object, vocab_size: int) -> tuple[int, ...]:
    """Token ids. Raises ValueError naming what is not understood."""
    return tuple(_prefix(post_processor, vocab_size, _DEEPEST))


def _prefix(step: object, vocab_size: int, deepest: int) -> list[int]:
    if step is None:
        return []
    match _key(step, "type"):
        case "ByteLevel":
            return []
        case "Sequence":
            return _prefix_of_all(_key(step, "processors"), vocab_size, deepest)
        case "BertProcessing" | "RobertaProcessing":
            match _key(step, "cls"):
                case [str(), token_id]:
                    return [_checked(token_id, vocab_size)]
            raise ValueError("post_processor: cls is no token and its id")
        case "TemplateProcessing":
            return _prefix_of_template(step, vocab_size)
        case kind:
            raise ValueError(f"post_processor is of type {brief(kind)}, which is not known here")


def _prefix_of_all(steps: object, vocab_size: int, deepest: int) -> list[int]:
    """Of the one that puts tokens anywhere; the library itself fails with two."""
    if not isinstance(steps, list) or len(steps) > MAX_PIECES or deepest == 0:
        raise ValueError(f"post_processor: processors are no list of at most {MAX_PIECES}")
    found = [prefix for step in steps if (prefix := _prefix(step, vocab_size, deepest - 1))]
    if len(found) > 1:
        raise ValueError("post_processor: two processors put tokens before a text")
    return found[0] if found else []


def _prefix_of_template(step: object, vocab_size: int) -> list[int]:
    """`single` is the special tokens around one text, the sequence A."""
    pieces = _key(step, "single")
    if not isinstance(pieces, list) or len(pieces) > MAX_PIECES:
        raise ValueError(f"post_processor: single is no list of at most {MAX_PIECES} pieces")
    places = [place for place, piece in enumerate(pieces) if _key(piece, "Sequence") is not None]
    if len(places) != 1:
        raise ValueError("post_processor: single is not special tokens around one text")
    tokens = _key(step, "special_tokens")
    found: list[int] = []
    for piece in pieces[: places[0]]:
        ids = _key(_key(tokens, _key(_key(piece, "SpecialToken"), "id")), "ids")
        if not isinstance(ids, Sequence) or len(ids) > MAX_PIECES:
            raise ValueError("post_processor: a special token of single has no ids")
        found += [_checked(token_id, vocab_size) for token_id in ids]
    if len(found) > MAX_PIECES:
        raise ValueError(f"post_processor: puts more than {MAX_PIECES} tokens before a text")
    return found


def _checked(token_id: object, vocab_size: int) -> int:
    if type(token_id) is not int or not 0 <= token_id < vocab_size:
        raise ValueError(f"post_processor: id {brief(token_id)} is not in [0, {vocab_size})")
    return token_id


def _key(value: object, key: object) -> Any:
    """None where there is no such key, or no object."""
    return value.get(key) if isinstance(value, dict) and isinstance(key, str) else None
