"""The dense parts of a decoder, plain functions of their weights; no state, no requests, no cache.

Shapes: T tokens, D d_model, H heads, d head size, G key/value heads, E experts, V vocabulary, R rows.
Attention itself is passed in (`Attend`): with or without a cache is not the model's business.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.errors import ConfigError
from moe_model.kernels.base import Linear, Norm, Rotary, Router

# 1 GiB of float32: the one large thing whose size comes from two numbers in a config and from no file.
MAX_POSITION_VALUES = 1 << 28

# (layer, q_THd, k_TGd, v_TGd) -> o_THd
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Embedding:
    """Token embedding plus a fixed table of positions (none: the positions act elsewhere).

    Rows are of `dtype`, or of the weights' own.
    """

    weight_VD: Tensor
    positions_SD: Tensor | None = None
    dtype: torch.dtype | None = None

    def __call__(self, token_ids_T: Tensor, positions_T: Tensor) -> Tensor:
        x_TD = F.embedding(token_ids_T, self.weight_VD).to(self.dtype or self.weight_VD.dtype)
        if self.positions_SD is None:
            return x_TD
        return x_TD + F.embedding(positions_T, self.positions_SD)


class Attention(Protocol):
    """What is around a layer's attention."""

    def project(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns q_THd, k_TGd, v_TGd of rows that have not been through the layer's norm."""

    def merge(self, o_THd: Tensor, residual_TD: Tensor) -> Tensor:
        """Returns the rows after the layer's attention, the residual added."""


@dataclass(frozen=True, slots=True)
class FusedAttention:
    """Projections with one matrix for query, key and value, whose rows are the H query heads, then the G
    heads of the keys, then those of the values, of d rows each.

    `qkv` begins with the layer's norm. With `rotary`, queries and keys turn by their positions.
    """

    qkv: Linear
    out: Linear
    n_heads: int
    n_kv_heads: int
    rotary: Rotary | None = None

    def project(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        num_heads = self.n_heads + self.n_kv_heads
        heads = self.qkv(x_TD).view(len(x_TD), num_heads + self.n_kv_heads, -1)
        turning, v_TGd = heads[:, :num_heads], heads[:, num_heads:]
        if self.rotary is not None:
            turning = self.rotary(turning, positions_T)
        return turning[:, : self.n_heads], turning[:, self.n_heads :], v_TGd

    def merge(self, o_THd: Tensor, residual_TD: Tensor) -> Tensor:
        return self.out(o_THd.flatten(1), residual_TD)


@dataclass(frozen=True, slots=True)
class Gate:
    """Which experts a layer's rows go to; `weight_ED` is what the router was made of."""

    router: Router
    weight_ED: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """One decoder layer without its experts.

    `gate` None: a dense layer, which has no experts. Every row also goes through `for_all`, whose answer is
    added as it is: the feed-forward network of a dense layer, the shared expert of one that has experts.
    """

    attention: Attention
    ffn_norm: Norm
    gate: Gate | None
    for_all: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        assert self.gate is not None or self.for_all is not None, "a layer without a feed-forward network"


@dataclass(frozen=True, slots=True)
class SharedModel:
    """Everything the coordinator runs: embedding, attention, routers, head.

    The head begins with the output norm.
    """

    embed: Embedding
    blocks: Sequence[Block]
    head: Linear


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
