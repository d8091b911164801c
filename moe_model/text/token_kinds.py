"""Kinds of tokenizers: what bytes a token's text in the vocabulary stands for.

byte level     every byte has a printable stand-in (GPT-2, Radford et al., 2019)
text           a token is text, but for marks that a tokenizer.json's `decoder` undoes: "▁" for a space, "##"
               for what goes on within a word, `<0x0A>` for a byte without another token (SentencePiece; BERT)

The first token of a whole text may stand for other bytes than the same token later: those without the space
that the tokenizer has put before the text.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any, Protocol

from moe_model.files.strict_json import brief

SPACE_MARK = "▁"
MAX_AFFIX_CHARS = 16
MAX_DECODER_STEPS = 32
# How much longer a token may become on its way to text.
MAX_DECODER_GROWTH = 4
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
# What `cleanup` of a WordPiece decoder puts together again, in this order.
_CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class TokenKind(Protocol):
    """How a vocabulary spells bytes. A whole text loses `strips` spaces at its beginning, at most."""

    @property
    def name(self) -> str: ...

    @property
    def strips(self) -> int: ...

    def bytes_of(self, token: str, *, is_first: bool = False) -> bytes:
        """The exact bytes of a token; those of its own text where it is spelled in no way of this kind."""


@dataclass(frozen=True)
class ByteLevel:
    """Every token is a run of stand-ins of bytes. (No slots: the alphabet is made once.)"""

    name: str = "ByteLevel"
    strips: int = 0

    def bytes_of(self, token: str, *, is_first: bool = False) -> bytes:
        if all(char in self._alphabet for char in token):
            return bytes(self._alphabet[char] for char in token)
        return token.encode("utf-8")

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return byte_alphabet()


# What a step makes of a token's text, given whether it is the first of a whole text.
Step = Callable[[str, bool], str]


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Tokens are text that goes through steps; with `has_bytes`, some are one byte."""

    steps: tuple[Step, ...]
    has_bytes: bool = False
    strips: int = 0

    @property
    def name(self) -> str:
        return "ByteFallback" if self.has_bytes else ""

    def bytes_of(self, token: str, *, is_first: bool = False) -> bytes:
        for step in self.steps:
            token = step(token, is_first)
        byte = _BYTE_TOKEN.fullmatch(token) if self.has_bytes else None
        return token.encode("utf-8") if byte is None else bytes.fromhex(byte[1])


def byte_alphabet() -> dict[str, int]:
    """The printable stand-in of each byte in byte-level BPE."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + offset): byte for offset, byte in enumerate(others)}


BYTE_LEVEL = ByteLevel()


def kind_of(decoder: object, model_type: object) -> TokenKind:
    """The kind that a tokenizer.json's `decoder` undoes. Raises ValueError naming a step of another.

    Without a decoder the library puts a space between tokens: only whole words make sense then.
    """
    if decoder is None and model_type == "WordLevel":
        return TextTokens((_spaced,))
    if decoder is None:
        raise ValueError("decoder: there is none, so tokens would become text with a space between each two")
    steps = list(islice(_flat(decoder, MAX_DECODER_STEPS), MAX_DECODER_STEPS + 1))
    if len(steps) > MAX_DECODER_STEPS:
        raise ValueError(f"decoder: has more than {MAX_DECODER_STEPS} steps")
    if [_type(step) for step in steps] == ["ByteLevel"]:
        return BYTE_LEVEL
    # Some steps for each token; then bytes; then, of the whole text, its beginning.
    strips = _stripped_spaces(steps.pop()) if len(steps) > 1 and _type(steps[-1]) == "Strip" else 0
    is_fused = bool(steps) and _type(steps[-1]) == "Fuse"
    if strips and not is_fused:
        raise ValueError("decoder: Strip is known only behind Fuse")
    steps = steps[:-1] if is_fused else steps
    has_bytes = bool(steps) and _type(steps[-1]) == "ByteFallback"
    steps = steps[:-1] if has_bytes else steps
    if not (steps or has_bytes):
        raise ValueError("decoder says nothing of how tokens become text")
    if prod(map(_growth, steps)) > MAX_DECODER_GROWTH:
        raise ValueError(f"decoder: makes tokens more than {MAX_DECODER_GROWTH} times as long")
    return TextTokens(tuple(map(_step, steps)), has_bytes, strips)


def _flat(step: object, deepest: int) -> Iterator[Mapping[str, Any]]:
    """What a sequence of sequences comes to."""
    if not isinstance(step, dict) or deepest == 0:
        raise ValueError(f"decoder: {brief(step)} is no step that is known here")
    if step.get("type") != "Sequence":
        yield step
        return
    inner = step.get("decoders")
    if not isinstance(inner, list) or len(inner) > MAX_DECODER_STEPS:
        raise ValueError(f"decoder: a Sequence has no list of at most {MAX_DECODER_STEPS} steps")
    for each in inner:
        yield from _flat(each, deepest - 1)


def _step(step: Mapping[str, Any]) -> Step:
    match _type(step):
        case "Replace":
            old, new = _text(step.get("pattern"), "String"), _text(step, "content", least=0)
            return lambda token, _: token.replace(old, new)
        case "Metaspace":
            mark, drops = _text(step, "replacement"), step.get("prepend_scheme", "always") != "never"
            return lambda token, is_first: token.replace(mark, "" if is_first and drops else " ")
        case "WordPiece":
            prefix, cleans = _text(step, "prefix", least=0), step.get("cleanup", True) is True
            return lambda token, is_first: _of_word(token, prefix, is_first=is_first, cleans=cleans)
        case kind:
            raise ValueError(f"decoder: {brief(kind)} is no step that is known here, or not in its place")


def _growth(step: Mapping[str, Any]) -> float:
    """Only a replacement makes a token longer by a factor."""
    if _type(step) != "Replace":
        return 1.0
    return max(1.0, len(_text(step, "content", least=0)) / len(_text(step.get("pattern"), "String")))


def _of_word(token: str, prefix: str, *, is_first: bool, cleans: bool) -> str:
    if not is_first:
        token = token[len(prefix) :] if token.startswith(prefix) else f" {token}"
    for old, new in _CLEANED if cleans else ():
        token = token.replace(old, new)
    return token


def _spaced(token: str, is_first: bool) -> str:
    return token if is_first else f" {token}"


def _stripped_spaces(step: Mapping[str, Any]) -> int:
    """Only at the beginning: what is at the end of a growing text is not known."""
    start = step.get("start")
    if step.get("content") != " " or step.get("stop") != 0 or type(start) is not int or not 0 <= start <= 64:
        raise ValueError("decoder: Strip is known only for at most 64 spaces at the beginning")
    return start


def _text(step: object, key: str, least: int = 1) -> str:
    value = step.get(key) if isinstance(step, dict) else None
    if not isinstance(value, str) or not least <= len(value) <= MAX_AFFIX_CHARS:
        raise ValueError(f"decoder: {key} is no text of {least} to {MAX_AFFIX_CHARS} characters")
    return value


def _type(step: Mapping[str, Any]) -> object:
    return step.get("type")
