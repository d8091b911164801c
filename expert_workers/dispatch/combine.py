"""Puts a layer's replies together: weighted partial sums, or rows per pair combined in the router's order.

Shapes: T tokens, K experts per token, P pairs, N rows of a reply, D d_model.
"""

from enum import StrEnum

import numpy as np
import torch
from torch import Tensor

from expert_workers.dispatch.split import Pairs, RowSlice
from expert_workers.wire import Array, ReplyForm
from moe_model.layers.dispatch import combine


class Combine(StrEnum):
    """EXACT: placement never shows, which for more than two experts a token costs a row per pair. SUM: a row
    per token and worker whatever K is; for K > 2 rounding depends on where the experts are."""

    EXACT = "exact"
    SUM = "sum"

    def form(self, top_k: int) -> ReplyForm:
        # A sum of two has the same bits in either order.
        return ReplyForm.PAIRS if self is Combine.EXACT and top_k > 2 else ReplyForm.SUM


class Sums:
    """Adds the workers' partial sums, in float32."""

    def __init__(self, pairs: Pairs, width: int) -> None:
        self._shape = (pairs.num_tokens, width)
        self._y_TD: Array | None = None

    def add(self, part: RowSlice, y_ND: Array) -> None:
        """Takes the reply over: it may become the result."""
        tokens = part.token_R
        if tokens is None:
            if self._y_TD is None:
                self._y_TD = y_ND if y_ND.flags.writeable else y_ND.copy()
            else:
                self._y_TD += y_ND
            return
        if self._y_TD is None:
            self._y_TD = np.zeros(self._shape, np.float32)
        self._y_TD[tokens] += y_ND

    def result(self) -> Tensor:
        return torch.from_numpy(np.zeros(self._shape, np.float32) if self._y_TD is None else self._y_TD)


class PairRows:
    """Gathers what each token's k-th expert said, and combines it as one process does."""

    def __init__(self, pairs: Pairs, width: int, weights_TK: Tensor) -> None:
        self._pairs = pairs
        self._weights_TK = weights_TK
        num_places = pairs.num_tokens * pairs.top_k
        make = np.empty if len(pairs.order_P) == num_places else np.zeros
        self._y_PD: Array = make((num_places, width), np.float32)

    def add(self, part: RowSlice, y_ND: Array) -> None:
        start = 0
        for pairs in part.pairs:
            stop = start + pairs.stop - pairs.start
            self._y_PD[self._pairs.order_P[pairs]] = y_ND[start:stop]
            start = stop

    def result(self) -> Tensor:
        y_TKD = self._y_PD.reshape(self._pairs.num_tokens, self._pairs.top_k, self._y_PD.shape[1])
        return combine(self._weights_TK, torch.from_numpy(y_TKD))
