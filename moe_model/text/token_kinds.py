"""Kinds of tokenizers: what bytes a token's text in the vocabulary stands for.

byte level     every byte has a printable stand-in (GPT-2, Radford et al., 2019)
byte fallback  a space is "▁", and a byte that has no other token is `<0x0A>` (SentencePiece; Llama, Mixtral)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

SPACE_MARK = "▁"
_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenKind(Protocol):
    """How a vocabulary spells bytes."""

    @property
    def strips_first_space(self) -> bool:
        """Whether a whole text begins with a space that its tokenizer has put there."""

    def bytes_of(self, token: str) -> bytes:
        """The exact bytes of a token; those of its own text where it is spelled in no way of this kind."""


@dataclass(frozen=True)
class ByteLevel:
    """Every token is a run of stand-ins of bytes. (No slots: the alphabet is made once.)"""

    strips_first_space: bool = False

    def bytes_of(self, token: str) -> bytes:
        if all(char in self._alphabet for char in token):
            return bytes(self._alphabet[char] for char in token)
        return token.encode("utf-8")

    @cached_property
    def _alphabet(self) -> dict[str, int]:
        return byte_alphabet()


@dataclass(frozen=True, slots=True)
class ByteFallback:
    """Tokens are text, but for those that are one byte."""

    strips_first_space: bool = True

    def bytes_of(self, token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return bytes.fromhex(byte[1])
        return token.replace(SPACE_MARK, " ").encode("utf-8")


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
# Of a byte-fallback file's `decoder`, in this order; the last one may be missing.
_FALLBACK_STEPS: tuple[Mapping[str, Any], ...] = (
    {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
)


def kind_of(decoder: object) -> TokenKind | None:
    """The kind that a tokenizer.json's `decoder` undoes; None for another than these."""
    if not isinstance(decoder, dict):
        return None
    if decoder.get("type") == "ByteLevel":
        return BYTE_LEVEL
    steps = decoder.get("decoders")
    if decoder.get("type") == "Sequence" and isinstance(steps, list):
        for num_steps in (len(_FALLBACK_STEPS), len(_FALLBACK_STEPS) - 1):
            if steps == list(_FALLBACK_STEPS[:num_steps]):
                return ByteFallback(strips_first_space=num_steps == len(_FALLBACK_STEPS))
    return None
