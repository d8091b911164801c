"""Splits a layer's (token, expert) pairs into one slice per worker. Pure.

Shapes: T tokens, K experts per token, P (token, expert) pairs sorted by expert, D d_model, E experts, R rows
of one slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from expert_workers.wire import Array
from moe_model.layers.dispatch import sort_by_expert


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs sorted by expert; within one expert the tokens keep their order.

    `order_P` indexes the flattened [T, K] pairs. Absent pairs, those of expert id E, are not there.
    """

    num_tokens: int
    top_k: int
    counts_E: list[int]
    starts_E: list[int]
    order_P: Array
    token_P: Array
    weights_P: Array


@dataclass(frozen=True, slots=True, eq=False)
class RowSlice:
    """One worker's part: its segments, the rows to send, and which sorted pairs its reply answers.

    Row r is the hidden state of token `token_R[r]`; None: of token r, and all are there.
    """

    segments: tuple[tuple[int, int], ...]
    pairs: tuple[slice, ...]
    row_index: Array | None
    weights_P: Array
    token_R: Array | None
    x_RD: Array


def sort_pairs(expert_ids_TK: Array, weights_TK: Array, n_experts: int) -> Pairs:
    num_tokens, top_k = expert_ids_TK.shape
    order_P, counts_E = sort_by_expert(expert_ids_TK.ravel(), n_experts)
    starts_E = [0, *accumulate(counts_E)]
    token_P = order_P // top_k if num_tokens > 1 else np.zeros_like(order_P)
    return Pairs(num_tokens, top_k, counts_E, starts_E, order_P, token_P, weights_TK.ravel()[order_P])


def cut(x_TD: Array, pairs: Pairs, segments: Sequence[tuple[int, int]]) -> RowSlice:
    """Takes each token's hidden state once, and without a copy where all are wanted."""
    starts = pairs.starts_E
    where = tuple([slice(starts[expert], starts[expert] + count) for expert, count in segments])
    tokens, weights = _taken(pairs.token_P, where), _taken(pairs.weights_P, where)
    if len(where) == 1:
        # Within one expert every token is there once and in order: no row repeats.
        token_R = None if len(tokens) == pairs.num_tokens else tokens
        return RowSlice(tuple(segments), where, None, weights, token_R, _rows(x_TD, token_R))
    rows_T = np.zeros(pairs.num_tokens, np.int32)
    rows_T[tokens] = 1
    num_rows = int(np.count_nonzero(rows_T))
    if num_rows == pairs.num_tokens:
        return RowSlice(tuple(segments), where, tokens.astype(np.int32), weights, None, x_TD)
    if num_rows == len(tokens):
        return RowSlice(tuple(segments), where, None, weights, tokens, x_TD[tokens])
    token_R = rows_T.nonzero()[0]
    rows_T[token_R] = np.arange(num_rows)
    return RowSlice(tuple(segments), where, rows_T[tokens], weights, token_R, x_TD[token_R])


def _taken(array_P: Array, where: tuple[slice, ...]) -> Array:
    if len(where) == 1:
        return array_P[where[0]]
    if where[-1].stop - where[0].start == sum([part.stop - part.start for part in where]):
        return array_P[where[0].start : where[-1].stop]
    return np.concatenate([array_P[part] for part in where])


def _rows(x_TD: Array, token_R: Array | None) -> Array:
    return x_TD if token_R is None else x_TD[token_R]
