"""Cuts a layer's sorted (token, expert) pairs into one slice per worker. Pure.

Shapes: T tokens, P (token, expert) pairs sorted by expert, D d_model, E experts, R rows of one slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expert_workers.wire import Array


@dataclass(frozen=True, slots=True, eq=False)
class RowSlice:
    """One worker's part: its segments, the rows to send, and which sorted pairs its reply answers."""

    segments: tuple[tuple[int, int], ...]
    pairs: tuple[slice, ...]
    row_index: Array | None
    x_RD: Array


def cut(
    x_TD: Array, token_P: Array, counts_E: Sequence[int], segments: Sequence[tuple[int, int]]
) -> RowSlice:
    """Takes each token's hidden state once. `token_P` is the token of each sorted pair."""
    starts = np.cumsum([0, *counts_E]).tolist()
    pairs = tuple(slice(starts[expert], starts[expert] + count) for expert, count in segments)
    tokens = token_P[pairs[0]] if len(pairs) == 1 else np.concatenate([token_P[part] for part in pairs])
    # Within one expert every token is there once, so a single segment never repeats a row.
    if len(pairs) > 1:
        unique, index = np.unique(tokens, return_inverse=True)
        if len(unique) < len(tokens):
            return RowSlice(tuple(segments), pairs, index.astype(np.int32), x_TD[unique])
    return RowSlice(tuple(segments), pairs, None, x_TD[tokens])
