"""A decoder's parts from its spec and its tensors, over any kernels.

Shapes: D d_model, E experts, H heads, O outputs of a product, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.decoder.build_latent import LatentBuilder
from moe_model.decoder.spec import SHARED_NETWORK, DecoderSpec, GroupedAttention, LatentAttention
from moe_model.kernels.base import Kernels, Linear, Norm
from moe_model.layers.attention import AttentionForm
from moe_model.layers.dense import (
    Attention,
    Block,
    Embedding,
    FusedAttention,
    Gate,
    GatedNetwork,
    HeadNorms,
    Join,
    ScaledJoin,
    SharedModel,
)
from moe_model.layers.router import RouterWeights
from moe_model.layers.specs import NormSpec
from moe_model.names import WeightForm


class DecoderBuilder:
    """Builds the shared part of one model."""

    def __init__(
        self,
        config: ModelConfig,
        spec: DecoderSpec,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        weights: WeightForm = "model",
    ) -> None:
        self._config, self._spec = config, spec
        self._tensors, self._kernels, self._weights = tensors, kernels, weights

    def build(self) -> SharedModel:
        spec, kernels = self._spec, self._kernels
        embedding_VD = self._tensors["embedding.weight"]
        dtype = kernels.hidden_dtype(embedding_VD.dtype)
        # The largest first: while it is packed it is there twice, and as yet hardly anything else.
        head = self._head(embedding_VD)
        attention = self._attention_maker()
        return SharedModel(
            Embedding(embedding_VD, dtype=dtype, scale=spec.embedding_scale),
            [self._block(layer, attention) for layer in range(self._config.n_layers)],
            head,
            spec.logits_scale,
        )

    def _head(self, embedding_VD: Tensor) -> Linear:
        head_VD = embedding_VD if self._config.tie_embedding else self._tensors["head.weight"]
        return self._linear(head_VD, norm=self._norm("output_norm", self._spec.norm))

    def _block(self, layer: int, attention: Callable[[int], Attention]) -> Block:
        is_dense, prefix = layer in self._config.dense_layers, f"blocks.{layer}"
        return Block(
            attention(layer),
            self._norm_before(f"{prefix}.ffn_norm"),
            None if is_dense else self._gate(prefix),
            self._network(f"{prefix}.dense") if is_dense else self._shared_expert(prefix),
            self._join(f"{prefix}.ffn_norm"),
        )

    def _gate(self, prefix: str) -> Gate:
        found = (self._tensors.get(f"{prefix}.router.{part}") for part in ("weight", "bias", "correction"))
        weight_ED, bias_E, correction_E = found
        assert weight_ED is not None
        weights = RouterWeights(weight_ED, bias_E, correction_E)
        return Gate(self._kernels.router(self._spec.rule, weights, self._config.top_k), weights)

    def _shared_expert(self, prefix: str) -> Callable[[Tensor], Tensor] | None:
        if not self._spec.shared_width:
            return None
        network = self._network(f"{prefix}.shared")
        if not self._spec.is_shared_gated:
            return network
        return GatedNetwork(network, self._kernels.row_gate(self._tensors[f"{prefix}.shared.router.weight"]))

    def _network(self, prefix: str) -> Callable[[Tensor], Tensor]:
        names = (f"{part}.weight" for part in ("gate", "up", "down"))
        return self._kernels.expert(
            SHARED_NETWORK, {name: self._tensors[f"{prefix}.{name}"] for name in names}, form=self._weights
        )

    def _linear(
        self,
        weight_OI: Tensor,
        bias_O: Tensor | None = None,
        norm: Norm | None = None,
        *,
        exact_rows: bool = False,
    ) -> Linear:
        return self._kernels.linear(weight_OI, bias_O, norm=norm, form=self._weights, exact_rows=exact_rows)

    def _attention_maker(self) -> Callable[[int], Attention]:
        """Of a layer; what all layers have in common is made once."""
        attention, config = self._spec.attention, self._config
        if isinstance(attention, LatentAttention):
            return self._latent_maker(attention)
        rotary = self._kernels.rotary(attention.rotary)

        def make(layer: int) -> Attention:
            prefix = f"blocks.{layer}"
            qkv_O = self._joined(prefix, ("q", "k", "v"), "bias") if attention.has_qkv_biases else None
            return FusedAttention(
                self._linear(
                    self._joined(prefix, ("q", "k", "v"), "weight"),
                    qkv_O,
                    norm=self._norm_before(f"{prefix}.attn_norm"),
                    # What is attended to hangs on queries and keys more than on all other rows.
                    exact_rows=True,
                ),
                self._linear(self._tensors[f"{prefix}.out.weight"], self._tensors.get(f"{prefix}.out.bias")),
                config.n_heads,
                config.n_kv_heads,
                self._form(attention, layer),
                rotary,
                self._head_norms(attention, prefix),
                attention.clamp,
                self._join(f"{prefix}.attn_norm"),
            )

        return make

    def _latent_maker(self, attention: LatentAttention) -> Callable[[int], Attention]:
        builder = LatentBuilder(attention, self._config.n_heads, self._tensors, self._kernels, self._weights)

        def make(layer: int) -> Attention:
            name = f"blocks.{layer}.attn_norm"
            return builder.build(layer, self._norm_before(name), self._join(name))

        return make

    def _form(self, attention: GroupedAttention, layer: int) -> AttentionForm:
        sinks_H = self._tensors.get(f"blocks.{layer}.sinks")
        return AttentionForm(
            attention.scale,
            attention.windows[layer] if attention.windows else None,
            None if sinks_H is None else sinks_H.float(),
        )

    def _head_norms(self, attention: GroupedAttention, prefix: str) -> HeadNorms | None:
        if attention.query_key_norm == "none":
            return None
        query, key = (
            self._kernels.head_norm(self._spec.norm, self._tensors[f"{prefix}.{part}_norm.weight"])
            for part in ("q", "k")
        )
        return HeadNorms(query, key, attention.query_key_norm == "whole")

    def _norm_before(self, name: str) -> Norm | None:
        return self._norm(name, self._spec.norm) if self._spec.norm_place == "before" else None

    def _join(self, name: str) -> Join | None:
        spec = self._spec
        norm = self._norm(name, spec.norm) if spec.norm_place == "after" else None
        return None if norm is None and spec.residual_scale == 1.0 else ScaledJoin(spec.residual_scale, norm)

    def _norm(self, name: str, spec: NormSpec) -> Norm:
        return self._kernels.norm(spec, self._tensors[f"{name}.weight"])

    def _joined(self, prefix: str, parts: Sequence[str], kind: str) -> Tensor:
        """Rows of several tensors as those of one."""
        return torch.cat([self._tensors[f"{prefix}.{part}.{kind}"] for part in parts])
