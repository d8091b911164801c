"""The parts of a model as data: what a family says of its norms, experts, positions and cache.

Kernels make parts from these and from tensors. Shapes: D d_model, F hidden size of an expert, H heads,
G key/value heads, d head size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

from moe_model.checks import check_count, check_number
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

# As in kernels/native/src/rows.h.
MAX_ROTARY_DIM = 1024

NormKind = Literal["layer_norm", "rms_norm"]
Activation = Literal["none", "gelu", "silu"]
Pairing = Literal["half_split", "interleaved"]
ScalingKind = Literal["linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class NormSpec:
    """`layer_norm`: (x - mean) / √(variance + eps) · w + b. `rms_norm`: x / √(mean x² + eps) · w.

    The root is of float32 values. Of `rms_norm`, the quotient is rounded to the rows' dtype before w counts,
    and the product again; with `is_rounded_once` the product alone is.
    """

    kind: NormKind
    eps: float
    is_rounded_once: bool = False


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
class RotaryScaling:
    """How rotary frequencies f differ from those that a model was first trained with, on `original`
    positions.

        linear  f / factor
        llama3  f / factor for waves longer than original / low, f for those shorter than original / high, and
                what lies between them in between
        yarn    f / factor for the pairs that turn less than `low` times in `original` positions, f for those
                that turn more than `high` times, and a ramp in between, whose ends are whole pairs with
                `truncate`; sines and cosines are multiplied by `attention_factor`

    Sources: Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation",
    2023; Llama 3 (Meta, 2024); Peng et al., "YaRN", 2023.
    """

    kind: ScalingKind
    factor: float
    original: int = 1
    low: float = 1.0
    high: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ScalingKind):
            raise ConfigError(f"rotary scaling: kind {brief(self.kind)} is not known")
        for name in ("factor", "low", "high", "attention_factor"):
            check_number(f"rotary scaling: {name}", getattr(self, name), 1e-6, 1e9)
        check_count("rotary scaling: original", self.original, 1 << 30)
        if not isinstance(self.truncate, bool):
            raise ConfigError("rotary scaling: truncate is neither true nor false")


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """Rotary positions: the first `dim` values of each head turn, the rest stay as they are.

    Pair i, of x_i and x_{i + dim/2} (`half_split`) or of x_2i and x_{2i+1} (`interleaved`), turns by
    position · theta^(-2i/dim), computed in float32, unless `scaling` says otherwise. Sines and cosines are
    rounded to the rows' dtype before rows turn; with `is_rounded_once` the rows that have turned alone are.
    """

    dim: int
    theta: float
    pairing: Pairing = "half_split"
    scaling: RotaryScaling | None = None
    is_rounded_once: bool = False

    def __post_init__(self) -> None:
        if self.dim % 2 or not 2 <= self.dim <= MAX_ROTARY_DIM:
            raise ConfigError(f"head_dim: {self.dim} values cannot turn in pairs, at most {MAX_ROTARY_DIM}")
        if not (math.isfinite(self.theta) and self.theta > 0):
            raise ConfigError(f"rotary positions: theta is {self.theta}")
        if self.theta <= 1 and self.scaling is not None and self.scaling.kind == "yarn":
            raise ConfigError(f"rotary positions: yarn has no frequencies for theta {self.theta}")


@dataclass(frozen=True, slots=True)
class CachePart:
    """A tensor that a layer keeps of each token: [num_heads, width]."""

    name: str
    num_heads: int
    width: int


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that keep the same parts of each token. A layer with a `window` looks back at so many tokens,
    the one that looks included, and needs no others; None: at all."""

    layers: tuple[int, ...]
    parts: tuple[CachePart, ...]
    window: int | None = None

    @property
    def values_per_token(self) -> int:
        """Over the group's layers."""
        return len(self.layers) * sum(part.num_heads * part.width for part in self.parts)


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What the layers keep of each token: keys and values, or what a family has instead. Every layer is in
    one group."""

    groups: tuple[CacheGroup, ...]

    @classmethod
    def of_heads(cls, n_layers: int, n_kv_heads: int, head_dim: int) -> Self:
        """Keys and values, [G, d] each, of all tokens in every layer."""
        return cls((CacheGroup(tuple(range(n_layers)), key_value_parts(n_kv_heads, head_dim)),))

    @classmethod
    def by_window(cls, parts: tuple[CachePart, ...], windows: Sequence[int | None]) -> Self:
        """The same parts in every layer; `windows` by layer."""
        distinct = sorted(set(windows), key=lambda window: window or 0)
        layers = {each: tuple(i for i, window in enumerate(windows) if window == each) for each in distinct}
        return cls(tuple(CacheGroup(layers[window], parts, window) for window in distinct))

    @property
    def n_layers(self) -> int:
        return sum(len(group.layers) for group in self.groups)

    @property
    def values_per_token(self) -> int:
        """Over all layers, of a token that all of them keep."""
        return sum(group.values_per_token for group in self.groups)


def key_value_parts(n_kv_heads: int, head_dim: int) -> tuple[CachePart, ...]:
    """Keys and values, [G, d] each."""
    return tuple(CachePart(name, n_kv_heads, head_dim) for name in ("keys", "values"))
