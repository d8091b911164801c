"""Softmax times values over pieces of a context, so that no piece has to wait for the others.

Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
Shapes: B sequences, G key/value heads, Q query heads of each, M tokens, S columns of a piece, d width of a
key, v width of a value.
"""

import torch
from torch import Tensor


class RunningSoftmax:
    """Of one block of queries. Sums are float32, or of the queries' dtype where that is wider."""

    def __init__(self, q_BGQMd: Tensor, scale: float, value_width: int, sinks_GQ: Tensor | None) -> None:
        """A sink is a first column, whose value is 0."""
        self._q_BGQMd, self._scale = q_BGQMd, scale
        dtype = torch.promote_types(q_BGQMd.dtype, torch.float32)
        like = q_BGQMd.new_empty((), dtype=dtype)
        shape = q_BGQMd.shape[:-1]
        if sinks_GQ is None:
            # Not -inf: a token may see nothing of a piece, and -inf less -inf is no number.
            self._largest = like.new_full((*shape, 1), torch.finfo(dtype).min)
        else:
            self._largest = sinks_GQ.to(like)[..., None, None].expand(*shape, 1)
        self._sum = like.new_full((*shape, 1), 0.0 if sinks_GQ is None else 1.0)
        self._mixed = like.new_zeros(*shape, value_width)

    def add(self, k_BGSd: Tensor, v_BGSv: Tensor, seen_BMS: Tensor | None) -> None:
        """A piece of the context; None: every token sees all of it."""
        scores = self._product(self._q_BGQMd, k_BGSd.transpose(2, 3)).to(self._sum.dtype) * self._scale
        if seen_BMS is not None:
            scores = scores.masked_fill_(~seen_BMS[:, None, None], float("-inf"))
        largest = torch.maximum(self._largest, scores.amax(-1, keepdim=True))
        weights = scores.sub_(largest).exp_()
        shrink = (self._largest - largest).exp()
        self._sum = self._sum * shrink + weights.sum(-1, keepdim=True)
        self._mixed = self._mixed * shrink + self._product(weights.to(v_BGSv.dtype), v_BGSv)
        self._largest = largest

    def result(self) -> Tensor:
        """o_BGQMv."""
        return self._mixed / self._sum

    def _product(self, x_BGQMi: Tensor, y_BGio: Tensor) -> Tensor:
        """The query heads that see one key head are rows of one product."""
        return (x_BGQMi.flatten(2, 3) @ y_BGio).view(*x_BGQMi.shape[:-1], -1)
