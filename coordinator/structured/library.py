"""The one door to llguidance: a vocabulary, and a grammar built under limits.

Runs in the server and in the probe's process alike, so it imports nothing heavy. Knows no request.
"""

import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from coordinator.engine.messages.errors import ConstraintError

MAX_MESSAGE = 200
# UTF-8 has no such byte.
_SPECIAL = b"\xff"

_POSITION = re.compile(r"^(?:at )?(\d+)\((\d+)\):\s*")
_NOISE = re.compile(r"<non-verbose/>|\s*\(limit for this grammar: \d+\)|\s+\(in regex\)")
_REGEX = re.compile(r'invalid regex ".*"(?=: )|regex parse error: .* error(?=: )')
_EXCERPT = re.compile(r"\n\s+\d+ \|")


class _ByteVocabulary:
    """What TokenizerWrapper wraps. The library asks for no tokens of a text, because nothing is forced."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.eos_token_id = len(tokens)
        special = [token_id for token_id, token in enumerate(tokens) if is_special(token)]
        self.tokens = [*(token[1:] if is_special(token) else token for token in tokens), b"end"]
        self.special_token_ids = [*special, self.eos_token_id]

    def __call__(self, text: str | bytes) -> list[int]:
        return []


def special(text: bytes) -> bytes:
    """A special token, for `make_tokenizer`: only a grammar that names its id allows it."""
    return _SPECIAL + text


def is_special(token: bytes) -> bool:
    """No token of text begins so and has more."""
    return len(token) > 1 and token.startswith(_SPECIAL)


def make_tokenizer(tokens: Sequence[bytes]) -> LLTokenizer:
    """Ids are positions; no bytes means never allowed. One id more, after the last, is the library's end."""
    return LLTokenizer(TokenizerWrapper(_ByteVocabulary(tokens)))


def _limits() -> LLParserLimits:
    """Bounds of building (about 50,000 units of fuel a millisecond) and of one token's mask (14,000 units of
    fuel and 20,000 items a millisecond)."""
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def build(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """A matcher at the beginning of the output, its first mask computed. Raises ConstraintError."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_limits())
    warnings = [] if matcher.is_error() else matcher.get_grammar_warnings()
    if warnings:
        raise ConstraintError(clean("; ".join(warnings)))
    matcher.compute_bitmask()
    if matcher.is_error():
        raise ConstraintError(clean(matcher.get_error()))
    return matcher


def clean(message: str) -> str:
    """One line of a library's message, at most MAX_MESSAGE characters, without excerpts of the grammar."""
    if "NoExtension" in message:
        return "no output can satisfy it"
    told = _NOISE.sub("", _EXCERPT.split(_POSITION.sub(r"line \1, column \2: ", message.strip()))[0])
    line = " ".join("".join(c if c.isprintable() else " " for c in told).split())
    line = _REGEX.sub("not a regular expression", line).replace(
        "not a regular expression: " * 2, "not a regular expression: "
    )
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 3] + "..."
