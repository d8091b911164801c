"""TokenMask: which tokens an output may have, and which of them never follow each other. Knows no text.

Shapes: V vocabulary.
"""

from collections.abc import Sequence

import numpy as np

from coordinator.engine.messages.errors import NoTokenLeftError
from coordinator.engine.messages.request import TokenRules


class TokenMask:
    """The rules of one request over one vocabulary; never changes, so its sequences share it."""

    def __init__(self, rules: TokenRules, vocab_size: int) -> None:
        self._allowed_V = np.full(vocab_size, not rules.allowed, dtype=np.bool_)
        self._allowed_V[list(rules.allowed)] = True
        # The last ids of forbidden sequences, by what stands before them.
        self._after: dict[tuple[int, ...], list[int]] = {}
        for *before, last in rules.forbidden:
            if before:
                self._after.setdefault(tuple(before), []).append(last)
            else:
                self._allowed_V[last] = False
        self._lengths = sorted({len(before) for before in self._after})
        self._ends = list(rules.ends)

    def apply(self, allowed_V: np.ndarray, token_ids: Sequence[int], num_prompt: int) -> None:
        """Takes from `allowed_V` what must not follow the tokens so far, of which the first are the prompt's.
        Raises NoTokenLeftError."""
        ends = allowed_V[self._ends]
        allowed_V &= self._allowed_V
        num_output = len(token_ids) - num_prompt
        for length in self._lengths:
            if length > num_output:
                break
            last = self._after.get(tuple(token_ids[len(token_ids) - length :]))
            if last is not None:
                allowed_V[last] = False
        allowed_V[self._ends] = ends
        if not allowed_V.any():
            raise NoTokenLeftError
