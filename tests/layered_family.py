"""A family that only tests have: its first layers are dense, the others have a shared expert beside the rest.

The proof that such a family is one module and a row in the registry: nothing of the product knows it.
Shapes: T tokens, D d_model, F d_ff, E experts, K experts per token, H heads, G key/value heads, d head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.checks import check_count
from moe_model.config import FamilyConfig, ModelConfig
from moe_model.decoder.spec import DecoderSpec
from moe_model.families.base import Family
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.mixtral.family import Mixtral

NAME = "layered"


@dataclass(frozen=True, slots=True)
class LayeredConfig(MixtralConfig):
    """Widths of the network of a dense layer, and of the shared expert."""

    dense_width: int = 20
    shared_width: int = 12

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        MixtralConfig.__post_init__(self)
        check_count("dense_width", self.dense_width, 1 << 20)
        check_count("shared_width", self.shared_width, 1 << 20)


class Layered(Mixtral):
    """As Mixtral, but for the feed-forward networks that every token goes through."""

    name = NAME
    architecture = "LayeredForTests"
    own_config = LayeredConfig

    def spec(self, config: ModelConfig) -> DecoderSpec:
        own = _own(config.own)
        return replace(super().spec(config), dense_width=own.dense_width, shared_width=own.shared_width)


def _own(own: FamilyConfig) -> LayeredConfig:
    assert isinstance(own, LayeredConfig)
    return own


FAMILY: Family = Layered()

LAYERED = ModelConfig(
    family=NAME,
    d_model=16,
    n_heads=4,
    n_kv_heads=2,
    head_dim=6,
    n_layers=4,
    d_ff=24,
    n_experts=5,
    top_k=2,
    vocab_size=50,
    max_seq_len=40,
    tie_embedding=False,
    dense_layers=(0, 2),
    own=LayeredConfig(),
)


def plain_logits(
    config: ModelConfig,
    shared: Mapping[str, Tensor],
    experts: Mapping[tuple[int, int], Mapping[str, Tensor]],
    ids_T: Tensor,
) -> Tensor:
    """The family's mathematics once more, for one sequence and without any part of the product."""
    own, positions_T = _own(config.own), torch.arange(len(ids_T))

    def norm(x_TD: Tensor, name: str) -> Tensor:
        return F.rms_norm(x_TD, x_TD.shape[-1:], shared[name], own.norm_eps)

    def ffn(x_TD: Tensor, of: Mapping[str, Tensor], prefix: str = "") -> Tensor:
        gate, up, down = (of[f"{prefix}{part}.weight"] for part in ("gate", "up", "down"))
        return (F.silu(x_TD @ gate.T) * (x_TD @ up.T)) @ down.T

    def turned(x_THd: Tensor) -> Tensor:
        half = config.head_dim // 2
        rates = own.rope_theta ** (-torch.arange(half) / half)
        angles = (positions_T[:, None] * rates)[:, None]
        a, b = x_THd[..., :half], x_THd[..., half:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    x_TD = shared["embedding.weight"][ids_T]
    for layer in range(config.n_layers):
        block = f"blocks.{layer}"
        n_TD = norm(x_TD, f"{block}.attn_norm.weight")
        q, k, v = (
            (n_TD @ shared[f"{block}.{part}.weight"].T).view(len(ids_T), -1, config.head_dim)
            for part in ("q", "k", "v")
        )
        k, v = (part.repeat_interleave(config.n_heads // config.n_kv_heads, 1) for part in (turned(k), v))
        scores = torch.einsum("thd,shd->hts", turned(q), k) / config.head_dim**0.5
        scores = scores.masked_fill(torch.ones(len(ids_T), len(ids_T)).triu(1) > 0, float("-inf"))
        o_TD = torch.einsum("hts,shd->thd", scores.softmax(-1), v).flatten(1)
        x_TD = x_TD + o_TD @ shared[f"{block}.out.weight"].T
        n_TD = norm(x_TD, f"{block}.ffn_norm.weight")
        of_all = "dense" if layer in config.dense_layers else "shared"
        y_TD = ffn(n_TD, shared, f"{block}.{of_all}.")
        if layer not in config.dense_layers:
            weights_TE = (n_TD @ shared[f"{block}.router.weight"].T).softmax(-1)
            top_TK, ids_TK = weights_TE.topk(config.top_k)
            top_TK = top_TK / top_TK.sum(-1, keepdim=True)
            for token in range(len(ids_T)):
                for weight, expert in zip(top_TK[token], ids_TK[token].tolist(), strict=True):
                    y_TD[token] += weight * ffn(n_TD[token : token + 1], experts[layer, expert])[0]
        x_TD = x_TD + y_TD
    return norm(x_TD, "output_norm.weight") @ shared["head.weight"].T
