"""Latent attention: what a layer keeps of a token is one latent for all heads, and they attend to it itself.

With keys W_K c and values W_V c of a head, made of a latent c, q · (W_K c) is (W_Kᵀ q) · c and Σ p (W_V c) is
W_V (Σ p c). So queries are turned into the space of latents, all heads attend to the latents, whose first
numbers are the values too, and what they found is turned into each head's values. This is what other
implementations call the absorbed form; nothing is ever expanded to keys and values of heads.
Source: DeepSeek-V2 (2024, section 2.1.2).

Shapes: T tokens, D d_model, H heads, c latent numbers, p plain and r turning numbers of a head, v its values;
d = c + r.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moe_model.kernels.base import HeadLinear, Linear, Norm, Rotary
from moe_model.layers.attention import AttentionForm, Kept
from moe_model.layers.dense import Join


@dataclass(frozen=True, slots=True)
class LatentQueries:
    """Queries of all heads: the plain numbers of every head, then the turning ones of every head.

    `down` None: `up` is of the rows, else of the latent of a query, and begins with that latent's norm.
    """

    down: Linear | None
    up: Linear
    plain_width: int
    turning_width: int

    def __call__(self, n_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Returns plain_THp, turning_THr."""
        q_TO = self.up(n_TD if self.down is None else self.down(n_TD))
        num_rows, num_heads = len(q_TO), q_TO.shape[1] // (self.plain_width + self.turning_width)
        num_plain = num_heads * self.plain_width
        return (
            q_TO[:, :num_plain].view(num_rows, num_heads, self.plain_width),
            q_TO[:, num_plain:].view(num_rows, num_heads, self.turning_width),
        )


@dataclass(frozen=True, slots=True)
class AbsorbedAttention:
    """The parts around latent attention.

    `norm` None: the layer has none before its attention. `kv_down` makes the latent and the turning key of
    all heads; `key_up` turns plain queries into the space of latents, `value_up` latents into values. `join`
    None: what the attention says is added to the residual.
    """

    norm: Norm | None
    queries: LatentQueries
    kv_down: Linear
    kv_norm: Norm
    key_up: HeadLinear
    value_up: HeadLinear
    out: Linear
    rotary: Rotary
    form: AttentionForm
    join: Join | None = None

    def project(self, x_TD: Tensor, positions_T: Tensor) -> tuple[Tensor, Kept]:
        """Returns q_THd and latent_T1d: the latent of each token after its norm, then its turned key."""
        n_TD = x_TD if self.norm is None else self.norm(x_TD)
        plain_THp, turning_THr = self.queries(n_TD)
        q_THd = torch.cat([self.key_up(plain_THp), self.rotary(turning_THr, positions_T)], dim=-1)
        kv_Td, num_latent = self.kv_down(n_TD), self.form.value_width
        latent_Tc = self.kv_norm(kv_Td[:, :num_latent].contiguous())
        key_T1r = self.rotary(kv_Td[:, num_latent:].unsqueeze(1), positions_T)
        return q_THd, (torch.cat([latent_Tc.unsqueeze(1), key_T1r], dim=-1),)

    def merge(self, o_THc: Tensor, residual_TD: Tensor) -> Tensor:
        o_TI = self.value_up(o_THc).flatten(1)
        return self.out(o_TI, residual_TD) if self.join is None else self.join(self.out(o_TI), residual_TD)
