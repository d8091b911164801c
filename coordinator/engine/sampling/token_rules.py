"""TokenRules: which tokens an output may have, and which of them never follow each other. Knows no text.

Shapes: V vocabulary.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from moe_model.errors import UserError


class NoTokenLeftError(UserError):
    """What a request allows, taken together, leaves no token to draw."""

    def __init__(self) -> None:
        super().__init__("allowed_token_ids, bad_words and the constraint leave no token to draw")


class TokenRules:
    """Of one request; never changes.

    `allowed` are the only ids that may be drawn, none stand for all. No sequence of `forbidden` ever stands
    in the output. `ends` are left as a constraint has them: it alone says where the output may end.
    """

    def __init__(
        self,
        vocab_size: int,
        allowed: Iterable[int] = (),
        forbidden: Iterable[Sequence[int]] = (),
        ends: Iterable[int] = (),
    ) -> None:
        ids = list(allowed)
        self._allowed_V = np.full(vocab_size, not ids, dtype=np.bool_)
        self._allowed_V[ids] = True
        # The last ids of forbidden sequences, by what stands before them.
        self._after: dict[tuple[int, ...], list[int]] = {}
        for sequence in forbidden:
            *before, last = sequence
            if before:
                self._after.setdefault(tuple(before), []).append(last)
            else:
                self._allowed_V[last] = False
        self._lengths = sorted({len(before) for before in self._after})
        self._ends = list(ends)

    @property
    def leaves_some(self) -> bool:
        """Whether an output can begin, as far as these rules go."""
        return bool(self._allowed_V.any()) or bool(self._ends)

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
