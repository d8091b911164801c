"""The bytes of calls and replies, as `expert_workers`' `wire`, `dispatch.split` and `frame` make them.

Shapes: T tokens of a step, K experts per token, E experts of a layer, R rows of one worker, W workers.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from expert_workers.dispatch.combine import Combine
from expert_workers.transports.frame import HEADER
from expert_workers.wire import DTYPES, ReplyForm
from scaling.shape import Shape

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[Any]


class Messages(NamedTuple):
    """`value_bytes`: of a number of a row on its way to the workers; what comes back has four."""

    d_model: int
    top_k: int
    n_experts: int
    value_bytes: int
    form: ReplyForm

    @classmethod
    def of(cls, shape: Shape, dtype: str, wire_dtype: str, combine: str, kernels: str) -> "Messages":
        """Native kernels make float32 rows of any model, which travel as `wire_dtype` says; with torch's
        those of a bfloat16 model travel as they are."""
        travels = wire_dtype if dtype == "float32" or kernels != "torch" else dtype
        value_bytes = DTYPES[travels][0].itemsize
        return cls(
            shape.d_model, shape.top_k, shape.n_experts, value_bytes, Combine(combine).form(shape.top_k)
        )

    def distinct_rows(self, num_tokens: int, pairs_W: Numbers, most_W: Numbers) -> Floats:
        """Expected distinct tokens among the pairs of each worker: a row is sent once for all experts there.

        Of the K draws of a token without putting back, none falls on a worker whose experts have the share p
        of all pairs with Π (1 - p E / (E - k)), exact where experts are alike. `most_W`: the pairs of a
        worker's expert with the most, which are different tokens.
        """
        share_W = pairs_W / max(1, num_tokens * self.top_k)
        none_W = np.ones(len(pairs_W))
        for k in range(self.top_k):
            none_W *= np.clip(1.0 - share_W * self.n_experts / (self.n_experts - k), 0.0, 1.0)
        rows_W: Floats = np.clip(num_tokens * (1.0 - none_W), most_W, np.minimum(num_tokens, pairs_W))
        return rows_W

    def bytes_out(self, num_tokens: int, rows_W: Numbers, pairs_W: Numbers, segments_W: Numbers) -> Floats:
        """Of each call: header, rows, segments, and row index and weights where there are any."""
        several = (segments_W > 1) & ((rows_W < pairs_W) | (rows_W >= num_tokens))
        body_W = rows_W * self.d_model * self.value_bytes + 8 * segments_W + 4 * pairs_W * several
        if self.form is ReplyForm.SUM:
            body_W = body_W + 4 * pairs_W
        found_W: Floats = HEADER.size + body_W
        return found_W

    def bytes_back(self, rows_W: Numbers, pairs_W: Numbers) -> Floats:
        """Of each reply: a float32 row for each row sent, or for each pair."""
        num_W = rows_W if self.form is ReplyForm.SUM else pairs_W
        found_W: Floats = HEADER.size + 4.0 * self.d_model * num_W
        return found_W
