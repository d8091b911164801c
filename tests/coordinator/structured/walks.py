"""Compilers over real and made-up vocabularies, and random walks over their masks."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers

from coordinator.engine.messages.request import ConstraintSource
from coordinator.engine.sampling.constraint import Constraint, Matcher
from coordinator.structured.compiler import ConstraintCompiler
from moe_model.text.token_kinds import byte_alphabet
from moe_model.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "demo" / "checkpoint" / "tokenizer.json"
TINY = ROOT / "tests" / "data" / "modularforge-tiny" / "tokenizer.json"
EOS = 3
CLOSING = (b'"', b"}", b"]", b",", b")")


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_bytes(path.read_bytes())


def made_up_tokenizer(tokens: Sequence[str]) -> Tokenizer:
    """A vocabulary of just these, written in the byte alphabet, after <eos>."""
    vocab = {"<eos>": 0} | {token: i for i, token in enumerate(tokens, 1)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.add_special_tokens(["<eos>"])
    return Tokenizer(backend, eos_token_id=0)


def all_bytes() -> list[str]:
    return list(byte_alphabet())


def compiled(
    compiler: ConstraintCompiler, kind: str, value: str | Sequence[str], *, compact_json: bool = False
) -> Constraint:
    """Of a text, or of choices."""
    texts = (value,) if isinstance(value, str) else tuple(value)
    return compiler.compile(ConstraintSource(kind, texts, compact_json))


@dataclass
class Compiling:
    """A compiler and what its ids mean."""

    tokenizer: Tokenizer
    compiler: ConstraintCompiler
    vocab_size: int

    def compile(self, kind: str, value: str | Sequence[str], *, compact_json: bool = False) -> Constraint:
        return compiled(self.compiler, kind, value, compact_json=compact_json)

    def allowed(self, matcher: Matcher) -> list[int]:
        mask_W = np.zeros(-(-self.vocab_size // 32), dtype=np.int32)
        matcher.fill_mask(mask_W)
        bits = np.unpackbits(mask_W.view(np.uint8), bitorder="little")
        return [int(token_id) for token_id in np.flatnonzero(bits)]

    def steps(
        self, constraint: Constraint, rng: random.Random, max_tokens: int = 150
    ) -> Iterator[tuple[bytes, bool, bool]]:
        """Each output of a random walk with whether it may end there, and whether it did there."""
        matcher, text = constraint.matcher(), b""
        for _ in range(max_tokens):
            allowed = self.allowed(matcher)
            assert allowed, "there is always at least one bit"
            ends = EOS in allowed
            assert ends is matcher.may_end
            words = [token_id for token_id in allowed if token_id != EOS]
            assert (not words) is matcher.must_end
            has_ended = ends and (not words or rng.random() < 0.3)
            yield text, ends, has_ended
            if has_ended:
                return
            token_id = self._choose(words, rng)
            text += self.tokenizer.token_bytes(token_id)
            matcher.advance(token_id)

    def _choose(self, words: list[int], rng: random.Random) -> int:
        closing = [t for t in words if self.tokenizer.token_bytes(t) in CLOSING]
        return rng.choice(closing if closing and rng.random() < 0.5 else words)


def check_walks(
    compiling: Compiling,
    constraint: Constraint,
    is_valid: Callable[[str], bool],
    num_walks: int = 30,
    min_ended: int = 1,
) -> None:
    """A walk may end exactly where its text is valid; at least `min_ended` walks do end."""
    num_ended = 0
    for seed in range(num_walks):
        for text, may_end, has_ended in compiling.steps(constraint, random.Random(seed)):
            try:
                valid = is_valid(text.decode())
            except UnicodeDecodeError:
                valid = False
            assert may_end == valid, text
            num_ended += has_ended
    assert num_ended >= min_ended
