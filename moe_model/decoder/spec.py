"""What a family says of its decoder, as data.

Shapes: D d_model, H heads, G key/value heads, d head size, E experts.
"""

from dataclasses import dataclass
from typing import Literal

from moe_model.errors import ConfigError
from moe_model.layers.router_rules import RouterRule
from moe_model.layers.specs import ExpertSpec, NormSpec, RotarySpec

QueryKeyNorm = Literal["none", "head", "whole"]
NormPlace = Literal["before", "after"]

SWIGLU = ExpertSpec(norm=None, is_gated=True, activation="silu", has_biases=False)
# Of a shared expert, and of a dense layer: of no family another one.
SHARED_NETWORK = SWIGLU


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    """Attention with G key/value heads for H query heads (Ainslie et al., "GQA", 2023).

    `scale` multiplies q k. `query_key_norm`: of each head by itself, or of all heads of a row together,
    before they turn. All of q, k and v are then clamped to ±`clamp`. `windows` by layer, empty: no layer has
    one.
    """

    scale: float
    rotary: RotarySpec
    query_key_norm: QueryKeyNorm = "none"
    has_qkv_biases: bool = False
    has_out_bias: bool = False
    has_sinks: bool = False
    clamp: float | None = None
    windows: tuple[int | None, ...] = ()


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): keys and values of all heads are made of
    one latent of `latent_rank` numbers, beside which one turning key, of `rotary.dim` numbers, serves all
    heads.

    A head's query has `plain_width` numbers that do not turn, then those that do; its value `value_width`.
    `query_rank` None: queries are one product, else two with a norm between. `norm_eps` is of the norms of
    both latents; `has_biases`: of the products into the latents, and of the last one.
    """

    scale: float
    rotary: RotarySpec
    query_rank: int | None
    latent_rank: int
    plain_width: int
    value_width: int
    norm_eps: float = 1e-6
    has_biases: bool = False


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """`norm_place` "after": no norm before attention and feed-forward, one after each, before it is added.

    `shared_width` 0: no shared expert; `is_shared_gated`: it counts by a sigmoid of the row. `dense_width` is
    of the feed-forward network of dense layers. Embeddings are multiplied by `embedding_scale`, what
    attention and feed-forward add by `residual_scale`; logits are divided by `logits_scale`.
    `has_balance`: its authors define a load-balancing loss.
    """

    norm: NormSpec
    attention: GroupedAttention | LatentAttention
    rule: RouterRule
    expert: ExpertSpec = SWIGLU
    norm_place: NormPlace = "before"
    has_router_bias: bool = False
    has_correction: bool = False
    shared_width: int = 0
    is_shared_gated: bool = False
    dense_width: int = 0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    has_balance: bool = True

    def check(self, n_layers: int, dense_layers: tuple[int, ...]) -> None:
        """Raises ConfigError for what does not go together."""
        if dense_layers and not self.dense_width:
            raise ConfigError("dense_layers: every layer of this family has experts")
        if isinstance(self.attention, GroupedAttention):
            assert len(self.attention.windows) in (0, n_layers), "a window for each layer"
