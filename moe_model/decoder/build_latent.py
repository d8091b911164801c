"""The parts around latent attention, from its spec and a layer's tensors.

Shapes: D d_model, H heads, I inputs, O outputs of a product; of a head p plain, r turning, v value numbers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_model.decoder.spec import LatentAttention
from moe_model.kernels.base import Kernels, Linear, Norm
from moe_model.layers.attention import AttentionForm
from moe_model.layers.dense import Attention, Join
from moe_model.layers.latent import AbsorbedAttention, LatentQueries
from moe_model.layers.specs import NormSpec
from moe_model.names import WeightForm


class LatentBuilder:
    """Builds the attention of one layer after the other; what they have in common is made once."""

    def __init__(
        self,
        attention: LatentAttention,
        n_heads: int,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        weights: WeightForm = "model",
    ) -> None:
        self._attention, self._n_heads = attention, n_heads
        self._tensors, self._kernels, self._weights = tensors, kernels, weights
        self._norm_spec = NormSpec("rms_norm", attention.norm_eps)
        self._rotary = kernels.rotary(attention.rotary)
        self._form = AttentionForm(attention.scale, value_width=attention.latent_rank)

    def build(self, layer: int, norm: Norm | None, join: Join | None) -> Attention:
        """`norm`: the layer's before its attention; `join` as `AbsorbedAttention` has it."""
        prefix, plain = f"blocks.{layer}", self._attention.plain_width
        up_HOI = self._of_heads(f"{prefix}.kv_up.weight")
        return AbsorbedAttention(
            norm,
            self._queries(prefix),
            self._linear(f"{prefix}.kv_down", exact_rows=True),
            self._norm(f"{prefix}.kv_norm"),
            self._kernels.head_linear(up_HOI[:, :plain].transpose(1, 2), exact_rows=True),
            self._kernels.head_linear(up_HOI[:, plain:]),
            self._linear(f"{prefix}.out"),
            self._rotary,
            self._form,
            join,
        )

    def _queries(self, prefix: str) -> LatentQueries:
        """Rows of heads, p + r each, become the p of all heads, then the r of all: each is one piece then."""
        plain, turning = widths = self._attention.plain_width, self._attention.rotary.dim
        is_direct = self._attention.query_rank is None
        weight_HOI = self._of_heads(f"{prefix}.q.weight" if is_direct else f"{prefix}.q_up.weight")
        parts = weight_HOI[:, :plain], weight_HOI[:, -turning:]
        weight_OI = torch.cat([part_HOI.flatten(0, 1) for part_HOI in parts])
        if is_direct:
            return LatentQueries(None, self._multiply(weight_OI, exact_rows=True), *widths)
        up = self._multiply(weight_OI, norm=self._norm(f"{prefix}.q_norm"), exact_rows=True)
        return LatentQueries(self._linear(f"{prefix}.q_down", exact_rows=True), up, *widths)

    def _linear(self, name: str, *, exact_rows: bool = False) -> Linear:
        weight_OI, bias_O = self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias")
        return self._multiply(weight_OI, bias_O, exact_rows=exact_rows)

    def _multiply(
        self, weight_OI: Tensor, bias_O: Tensor | None = None, norm: Norm | None = None, *, exact_rows: bool
    ) -> Linear:
        """`exact_rows` of queries and keys, as `decoder/build.py` has it."""
        return self._kernels.linear(weight_OI, bias_O, norm=norm, form=self._weights, exact_rows=exact_rows)

    def _norm(self, name: str) -> Norm:
        return self._kernels.norm(self._norm_spec, self._tensors[f"{name}.weight"])

    def _of_heads(self, name: str) -> Tensor:
        weight_OI = self._tensors[name]
        return weight_OI.view(self._n_heads, -1, weight_OI.shape[1])
