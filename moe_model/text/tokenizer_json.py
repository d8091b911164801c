"""What a tokenizer.json may hold, checked from the JSON before the library builds anything of it.

Ids, counts and lengths are bounded here, by the model's vocabulary and by what any published file has. What
a text goes through before it is cut into tokens is compared with what is known to take time in proportion to
the text: published patterns and the usual steps. A file with other steps is not refused; a caller that
encodes with it has to bound time and memory in another way.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moe_model.config import LIMITS
from moe_model.errors import TokenizerError
from moe_model.files import strict_json
from moe_model.files.strict_json import brief
from moe_model.text.known_patterns import KNOWN_PATTERNS
from moe_model.text.model_json import check_model, check_token, ids_by_token, model_type, slow_model
from moe_model.text.post_processor import prefix_of
from moe_model.text.token_kinds import MAX_AFFIX_CHARS, SPACE_MARK, TokenKind, kind_of

MAX_TOKENIZER_BYTES = 64 << 20
MAX_ADDED_CHARS = 1 << 20
MAX_STEPS = 32
# Entries of a file in proportion to the vocabulary: a token, its merge's two halves, its eight keys as an
# added one; several merges may make one token.
_ENTRIES_PER_TOKEN = 16
_MORE_ENTRIES = 1 << 16

# Steps that cost as much as the text is long, and at most so many bytes for each of its own.
_PLAIN_GROWTH = {
    **dict.fromkeys(("NFC", "NFD"), 3),
    "ByteLevel": 2,
    "Split": 1,
    **dict.fromkeys(("Digits", "Punctuation", "Whitespace", "WhitespaceSplit"), 1),
    **dict.fromkeys(("Strip", "StripAccents", "Lowercase"), 2),
    # Once for a text.
    "Prepend": 1,
    **dict.fromkeys(("Replace", "Metaspace"), 3),
}
# Those that are known only as what puts a mark of three bytes in the place of a space, or before the text.
_SPACE_MARKS: Mapping[object, Mapping[str, Any]] = {
    "Prepend": {"prepend": SPACE_MARK},
    "Replace": {"pattern": {"String": " "}, "content": SPACE_MARK},
    "Metaspace": {"replacement": SPACE_MARK},
}
_MAX_GROWTH = 16
# Nothing of these is built: texts are neither padded nor cut here, what goes before one is read below, and
# ids become text without the library.
_UNUSED = ("truncation", "padding", "post_processor", "decoder")


@dataclass(frozen=True, slots=True)
class TokenizerJson:
    """A checked file.

    `core` is the library's JSON of all that is used of it; `bare` is without the steps before the model, that
    is the vocabulary alone. `unknown` is the step that may take any time and memory for a text, None where
    there is none. `kind` says what bytes the tokens stand for. `prefix` has the ids of the special tokens
    that the post-processor puts before a text.
    """

    core: str
    bare: str
    unknown: str | None
    kind: TokenKind
    prefix: tuple[int, ...]


def read_tokenizer_json(data: bytes, vocab_size: int = LIMITS["vocab_size"]) -> TokenizerJson:
    """`vocab_size` is the model's: ids are less. Raises TokenizerError naming the key."""
    try:
        return _read(data, vocab_size)
    except ValueError as error:
        raise TokenizerError(f"tokenizer.json: {' '.join(str(error).split())[:300]}") from None


def ids_of(data: bytes, texts: Iterable[str], vocab_size: int = LIMITS["vocab_size"]) -> dict[str, int]:
    """Of those texts that are tokens, without building anything of the file. Raises TokenizerError."""
    try:
        file = _parsed(data, vocab_size)
        model, added = _object(file.get("model"), "model"), file.get("added_tokens") or []
        check_model(model, vocab_size)
        _check_added(added, vocab_size)
    except ValueError as error:
        raise TokenizerError(f"tokenizer.json: {' '.join(str(error).split())[:300]}") from None
    # An added token that is in the vocabulary has its id.
    ids = {token["content"]: token["id"] for token in added} | ids_by_token(model)
    return {text: ids[text] for text in texts if text in ids}


def _read(data: bytes, vocab_size: int) -> TokenizerJson:
    file = _parsed(data, vocab_size)
    model = _object(file.get("model"), "model")
    check_model(model, vocab_size)
    _check_added(file.get("added_tokens") or [], vocab_size)
    kind = kind_of(file.get("decoder"), model_type(model))
    unknown = _unknown_step(file) or slow_model(model)
    used = {key: value for key, value in file.items() if key not in _UNUSED} | dict.fromkeys(_UNUSED)
    core = json.dumps(used)
    bare = core if unknown is None else json.dumps(used | {"normalizer": None, "pre_tokenizer": None})
    prefix = prefix_of(file.get("post_processor"), vocab_size)
    return TokenizerJson(core, bare, unknown, kind, prefix)


def _parsed(data: bytes, vocab_size: int) -> dict[str, Any]:
    """Bounded by the model's vocabulary before it is."""
    if len(data) > MAX_TOKENIZER_BYTES:
        raise ValueError(f"has {len(data)} bytes, at most {MAX_TOKENIZER_BYTES} are allowed")
    # Parsed, every entry takes a hundred bytes; commas in texts only count too much.
    most = _ENTRIES_PER_TOKEN * vocab_size + _MORE_ENTRIES
    if data.count(b",") > most:
        raise ValueError(f"has more than {most} entries, too many for {vocab_size} tokens")
    return _object(strict_json.loads(data), "the file")


def _check_added(added: object, vocab_size: int) -> None:
    if not isinstance(added, list) or len(added) > 2 * vocab_size:
        raise ValueError(f"added_tokens is no list of at most {2 * vocab_size} tokens")
    num_chars = 0
    for each in added:
        token = _object(each, "added_tokens: a token")
        content = token.get("content")
        if not isinstance(content, str):
            raise ValueError("added_tokens: a token has no content")
        check_token(content, token.get("id"), vocab_size)
        num_chars += len(content)
    if num_chars > MAX_ADDED_CHARS:
        raise ValueError(f"added_tokens have {num_chars} characters, at most {MAX_ADDED_CHARS} are allowed")


def _unknown_step(file: Mapping[str, Any]) -> str | None:
    """Raises ValueError for more steps than a text can go through."""
    steps = [
        (key, step)
        for key in ("normalizer", "pre_tokenizer")
        for step in _steps(file.get(key), key, MAX_STEPS)
    ]
    if len(steps) > MAX_STEPS:
        raise ValueError(f"normalizer and pre_tokenizer have more than {MAX_STEPS} steps")
    growth = 1
    for key, step in steps:
        found = _growth(step)
        if found is None:
            return f"{key}: {brief(_type(step))}"
        growth *= found
    return None if growth <= _MAX_GROWTH else "normalizer and pre_tokenizer: so many steps"


def _growth(step: Mapping[str, Any]) -> int | None:
    """How many bytes a step makes of one, at most; None where that is not known."""
    kind = _type(step)
    if kind == "Split" and not _is_known(step.get("pattern")):
        return None
    if kind in _SPACE_MARKS and not _SPACE_MARKS[kind].items() <= step.items():
        return None
    return _PLAIN_GROWTH.get(kind) if isinstance(kind, str) else None


def _steps(step: object, key: str, deepest: int) -> Iterator[Mapping[str, Any]]:
    """What a sequence of sequences comes to."""
    if step is None:
        return
    if deepest == 0:
        raise ValueError(f"{key} is nested too deeply")
    found = _object(step, key)
    if found.get("type") != "Sequence":
        yield found
        return
    inner = found.get("normalizers" if key == "normalizer" else "pretokenizers")
    if not isinstance(inner, list):
        raise ValueError(f"{key}: a Sequence has no list of steps")
    for each in inner:
        yield from _steps(each, key, deepest - 1)


def _is_known(pattern: object) -> bool:
    if not isinstance(pattern, dict) or len(pattern) != 1:
        return False
    text = pattern.get("String")
    return pattern.get("Regex") in KNOWN_PATTERNS or (
        isinstance(text, str) and 0 < len(text) <= MAX_AFFIX_CHARS
    )


def _type(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not an object")
    return value
