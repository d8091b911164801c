"""The parts of a model as data: what a family says of its norms, experts, positions and cache.

Kernels make parts from these and from tensors. Shapes: D d_model, F hidden size of an expert, H heads,
G key/value heads, d head size.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

from moe_model.errors import ConfigError

# As in kernels/native/src/rows.h.
MAX_ROTARY_DIM = 1024

NormKind = Literal["layer_norm", "rms_norm"]
Activation = Literal["none", "gelu", "silu"]
Pairing = Literal["half_split", "interleaved"]


@dataclass(frozen=True, slots=True)
class NormSpec:
    """`layer_norm`: (x - mean) / √(variance + eps) · w + b. `rms_norm`: x / √(mean x² + eps) · w.

    The root is of float32 values. Of `rms_norm`, the quotient is rounded to the rows' dtype before w counts.
    """

    kind: NormKind
    eps: float


@dataclass(frozen=True, slots=True)
class SwigluLimit:
    """g = min(gate, limit), u = clamp(up, ±limit); the hidden values are (u + 1) · g · sigmoid(alpha · g).

    Source: gpt-oss (OpenAI, 2025).
    """

    limit: float
    alpha: float

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("alpha", self.alpha)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"experts: {name} of their hidden values is {value}")


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One expert: with n = norm(x), or x where there is no norm,

        gated:      down(activation(gate(n)) · up(n))
        limited:    down(what `limit` says of gate(n) and up(n)), whatever the activation
        not gated:  down(activation(up(n)))

    `gelu` is the exact (erf) one. Its tensors have canonical names: `norm.weight`, `norm.bias` [D],
    `gate.weight`, `up.weight` [F, D], `down.weight` [D, F], and with `has_biases` also `gate.bias`,
    `up.bias` [F], `down.bias` [D].
    """

    norm: NormSpec | None
    is_gated: bool
    activation: Activation
    has_biases: bool
    limit: SwigluLimit | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and not self.is_gated:
            raise ConfigError("experts: a limit is of gated ones")


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """Rotary positions: the first `dim` values of each head turn, the rest stay as they are.

    Pair i, of x_i and x_{i + dim/2} (`half_split`) or of x_2i and x_{2i+1} (`interleaved`), turns by
    position · theta^(-2i/dim), computed in float32.
    """

    dim: int
    theta: float
    pairing: Pairing = "half_split"

    def __post_init__(self) -> None:
        if self.dim % 2 or not 2 <= self.dim <= MAX_ROTARY_DIM:
            raise ConfigError(f"rotary positions: {self.dim} values of a head cannot turn in pairs")
        if not (math.isfinite(self.theta) and self.theta > 0):
            raise ConfigError(f"rotary positions: theta is {self.theta}")


@dataclass(frozen=True, slots=True)
class CachePart:
    """A tensor that a layer keeps of each token: [num_heads, width]."""

    name: str
    num_heads: int
    width: int


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What each layer keeps of each token. Its parts are keys and values, or what a family has instead."""

    n_layers: int
    parts: tuple[CachePart, ...]

    @classmethod
    def of_heads(cls, n_layers: int, n_kv_heads: int, head_dim: int) -> Self:
        """Keys and values, [G, d] each."""
        parts = tuple(CachePart(name, n_kv_heads, head_dim) for name in ("keys", "values"))
        return cls(n_layers, parts)

    @property
    def values_per_token(self) -> int:
        """Over all layers."""
        return self.n_layers * sum(part.num_heads * part.width for part in self.parts)
