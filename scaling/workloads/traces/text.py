"""Prompts cut from a text file of the user's, one after the other where the seed says."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

from moe_model.errors import ConfigError
from scaling.workloads.traces.lines import opened

# Characters that are read of it.
MOST_CHARACTERS = 4 << 20


def tokens_of(path: Path, encode: Callable[[str], Sequence[int]]) -> tuple[int, ...]:
    """All of the text. Raises ConfigError."""
    with opened(path) as file:
        text = file.read(MOST_CHARACTERS)
    found = tuple(encode(text))
    if not found:
        raise ConfigError(f"{path}: empty")
    return found


def piece(tokens: Sequence[int], length: int, seed: int, index: int) -> tuple[int, ...]:
    """(length,) tokens in their order, from a place that the seed says; the text begins again at its end."""
    start = random.Random(f"text {seed} {index}").randrange(len(tokens))
    return tuple(tokens[(start + offset) % len(tokens)] for offset in range(length))
