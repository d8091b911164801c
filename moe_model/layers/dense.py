"""The dense parts of a decoder, plain functions of their weights; no state, no requests, no cache.

Shapes: T tokens, D d_model, H heads, d head size, G key/value heads, E experts, V vocabulary, R rows.
Attention itself is passed in (`attention.Attend`): with or without a cache is not the model's business.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.kernels.base import HeadNorm, Linear, Norm, Rotary, Router, RowGate
from moe_model.layers.attention import AttentionForm, Kept
from moe_model.layers.router import RouterWeights

# 1 GiB of float32: the one large thing whose size comes from two numbers in a config and from no file.
MAX_POSITION_VALUES = 1 << 28


@dataclass(frozen=True, slots=True)
class Embedding:
    """Token embedding, times `scale`, plus a fixed table of positions (none: the positions act elsewhere).

    Rows are of `dtype`, or of the weights' own.
    """

    weight_VD: Tensor
    positions_SD: Tensor | None = None
    dtype: torch.dtype | None = None
    scale: float = 1.0

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        x_TD = F.embedding(token_ids_T, self.weight_VD).to(self.dtype or self.weight_VD.dtype)
        if self.scale != 1.0:
            x_TD = x_TD * self.scale
        if self.positions_SD is None:
            return x_TD
        return x_TD + F.embedding(positions_T, self.positions_SD)


class Attention(Protocol):
    """What is around a layer's attention."""

    @property
    def form(self) -> AttentionForm: ...

    def project(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Kept]:
        """Returns q_THd, and what the layer keeps, of rows that have not been through the layer's norm."""

    def merge(self, o_THd: Tensor, residual_TD: Tensor) -> Tensor:
        """Returns the rows after the layer's attention, the residual added."""


class Join(Protocol):
    """How what a part of a layer says joins the rows that it was asked about."""

    def __call__(self, y_TD: Tensor, residual_TD: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class ScaledJoin:
    """residual + scale · norm(y); no norm: y as it is."""

    scale: float = 1.0
    norm: Norm | None = None

    def __call__(self, y_TD: Tensor, residual_TD: Tensor) -> Tensor:
        y_TD = y_TD if self.norm is None else self.norm(y_TD)
        return residual_TD + (y_TD if self.scale == 1.0 else y_TD * self.scale)


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Norms of queries and keys before they turn: of each head by itself, or, `is_whole`, of all heads of a
    row together. Sources: Henry et al., "Query-Key Normalization", 2020; OLMoE (2024), for whole ones."""

    query: HeadNorm
    key: HeadNorm
    is_whole: bool

    def __call__(self, q_THd: Tensor, k_TGd: Tensor) -> None:
        """Where they are."""
        for norm, x_THd in ((self.query, q_THd), (self.key, k_TGd)):
            norm.norm_heads(x_THd.view(len(x_THd), 1, -1) if self.is_whole else x_THd)


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Projections with one matrix for query, key and value, whose rows are the H query heads, then the G
    heads of the keys, then those of the values, of d rows each.

    `qkv` begins with the layer's norm, where the layer has one before its attention. All values are clamped
    to ±`clamp` after the norms of the heads; with `rotary`, queries and keys then turn by their positions.
    `join` None: what the attention says is added to the residual.
    """

    qkv: Linear
    out: Linear
    n_heads: int
    n_kv_heads: int
    form: AttentionForm
    rotary: Rotary | None = None
    norms: HeadNorms | None = None
    clamp: float | None = None
    join: Join | None = None

    def project(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Kept]:
        num_heads = self.n_heads + self.n_kv_heads
        heads = self.qkv(x_TD).view(len(x_TD), num_heads + self.n_kv_heads, -1)
        if self.norms is not None:
            self.norms(heads[:, : self.n_heads], heads[:, self.n_heads : num_heads])
        if self.clamp is not None:
            heads.clamp_(-self.clamp, self.clamp)
        turning, v_TGd = heads[:, :num_heads], heads[:, num_heads:]
        if self.rotary is not None:
            turning = self.rotary(turning, positions_T)
        return turning[:, : self.n_heads], (turning[:, self.n_heads :], v_TGd)

    def merge(self, o_THd: Tensor, residual_TD: Tensor) -> Tensor:
        o_TI = o_THd.flatten(1)
        return self.out(o_TI, residual_TD) if self.join is None else self.join(self.out(o_TI), residual_TD)


@dataclass(frozen=True, slots=True)
class Gate:
    """Which experts a layer's rows go to; `weights` are what the router was made of."""

    router: Router
    weights: RouterWeights


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer without its experts.

    `gate` None: a dense layer, which has no experts. Every row also goes through `for_all`, whose answer is
    added as it is: the feed-forward network of a dense layer, the shared expert of one that has experts. The
    sum joins the residual by `join`, None: it is added. `ffn_norm` None: rows go in without a norm.
    """

    attention: Attention
    ffn_norm: Norm | None
    gate: Gate | None
    for_all: Callable[[Tensor], Tensor] | None = None
    join: Join | None = None

    def __post_init__(self) -> None:
        assert self.gate is not None or self.for_all is not None, "a layer without a feed-forward network"

    def ffn_rows(self, x_TD: Tensor) -> Tensor:
        """What the feed-forward networks see."""
        return x_TD if self.ffn_norm is None else self.ffn_norm(x_TD)

    def joined(self, y_TD: Tensor, residual_TD: Tensor) -> Tensor:
        return residual_TD + y_TD if self.join is None else self.join(y_TD, residual_TD)


@dataclass(frozen=True, slots=True)
class GatedNetwork:
    """sigmoid(w x) · network(x): a shared expert that counts as each row says. Source: Qwen1.5-MoE."""

    network: Callable[[Tensor], Tensor]
    gate: RowGate

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.gate(self.network(x_TD), x_TD)


@dataclass(frozen=True, slots=True)
class SharedModel:
    """Everything the coordinator runs: embedding, attention, routers, head.

    The head begins with the output norm; its logits are divided by `logits_scale`.
    """

    embed: Embedding
    blocks: Sequence[Block]
    head: Linear
    logits_scale: float = 1.0


def sinusoidal_positions(max_seq_len: int, d_model: int) -> Tensor:
    """Fixed position table [max_seq_len, d_model]: even columns sine, odd columns cosine, base 10000.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5. Float32, like the model's origin.
    Raises ConfigError for a table that no file could have vouched for.
    """
    if max_seq_len * d_model > MAX_POSITION_VALUES:
        raise ConfigError(f"max_seq_len: {max_seq_len} positions of {d_model} are more than can be held")
    position_S1 = torch.arange(max_seq_len, dtype=torch.float32).unsqueeze(1)
    rate = torch.exp(torch.arange(0, d_model, 2).float() * (-math.log(10000.0) / d_model))
    angle = position_S1 * rate
    table_SD = torch.empty(max_seq_len, d_model)
    table_SD[:, 0::2] = torch.sin(angle)
    table_SD[:, 1::2] = torch.cos(angle)[:, : d_model // 2]
    return table_SD
