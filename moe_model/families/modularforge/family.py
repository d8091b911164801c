"""ModularForge: LayerNorm, fixed sinusoidal positions, fused attention, GELU experts with their own norm.

Shapes: D d_model, F d_ff, E experts, V vocabulary, R rows.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from moe_model.config import FamilyConfig, ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.base import Family, Shapes
from moe_model.families.weights import draw, kaiming_bound, num_values, prefixed, xavier_bound
from moe_model.kernels.base import Kernels, Norm, Router
from moe_model.layers.attention import AttentionForm
from moe_model.layers.dense import (
    Block,
    Embedding,
    FusedAttention,
    Gate,
    SharedModel,
    sinusoidal_positions,
)
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_ffn import cut_expert
from moe_model.layers.expert_slices import ExpertSlice
from moe_model.layers.router import RouterWeights, Routing, load_balancing_loss
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.layers.specs import CacheSpec, ExpertSpec, NormSpec
from moe_model.names import WeightForm

_NORM = NormSpec("layer_norm", eps=1e-5)
_EXPERT = ExpertSpec(norm=_NORM, is_gated=False, activation="gelu", has_biases=True)
# Our name of an expert's tensor -> its canonical one begins with this.
_EXPERT_PARTS = {"norm": "norm", "fc1": "up", "fc2": "down"}


class ModularForge:
    """The family of `AssembledMoEModel`."""

    name = "modularforge"
    architecture = "AssembledMoEModel"
    own_config = FamilyConfig
    hugging_face = None

    def check(self, config: ModelConfig) -> None:
        if config.n_kv_heads != config.n_heads:
            raise ConfigError(f"n_kv_heads: {config.n_kv_heads} is not n_heads {config.n_heads}")
        if config.head_dim * config.n_heads != config.d_model:
            raise ConfigError(f"head_dim: {config.head_dim} is not d_model / n_heads")
        if config.dense_layers:
            raise ConfigError("dense_layers: every layer of this family has experts")

    def shared_shapes(self, config: ModelConfig) -> Shapes:
        d = config.d_model
        shapes: Shapes = {"embedding.weight": (config.vocab_size, d)}
        for layer in range(config.n_layers):
            shapes |= prefixed(f"blocks.{layer}.attn_norm", _norm_shapes(d))
            shapes[f"blocks.{layer}.qkv.weight"] = (3 * d, d)
            shapes[f"blocks.{layer}.out.weight"] = (d, d)
            shapes |= prefixed(f"blocks.{layer}.ffn_norm", _norm_shapes(d))
            shapes[f"blocks.{layer}.router.weight"] = (config.n_experts, d)
        shapes |= prefixed("output_norm", _norm_shapes(d))
        if not config.tie_embedding:
            shapes["head.weight"] = (config.vocab_size, d)
        return shapes

    def expert_shapes(self, config: ModelConfig) -> Shapes:
        d, f = config.d_model, config.d_ff
        return prefixed("norm", _norm_shapes(d)) | {
            "fc1.weight": (f, d),
            "fc1.bias": (f,),
            "fc2.weight": (d, f),
            "fc2.bias": (d,),
        }

    def float32_names(self, config: ModelConfig) -> frozenset[str]:
        return frozenset()

    def balance(
        self, config: ModelConfig, routings: Sequence[Routing], is_text_T: Tensor | None = None
    ) -> Tensor:
        """Padding counts, as its authors have it."""
        return torch.stack([load_balancing_loss(routing) for routing in routings]).sum()

    def cache_spec(self, config: ModelConfig) -> CacheSpec:
        return CacheSpec.of_heads(config.n_layers, config.n_kv_heads, config.head_dim)

    def num_params(self, config: ModelConfig) -> int:
        return (
            self._num_shared(config)
            + config.n_layers * 2 * config.d_model
            + config.n_layers * (config.n_experts * self._num_expert(config) + self._num_router(config))
        )

    def num_active_params_per_token(self, config: ModelConfig) -> int:
        per_layer = config.top_k * self._num_expert(config) + self._num_router(config)
        return self._num_shared(config) + config.n_layers * per_layer

    def _num_shared(self, config: ModelConfig) -> int:
        # Their shared part carries a second, unused ffn_norm per layer, which has the size of the one in use.
        # The norm in use belongs to their MoE layer and counts as neither shared nor active.
        ours = num_values(self.shared_shapes(config))
        return ours - config.n_layers * config.n_experts * config.d_model

    def _num_expert(self, config: ModelConfig) -> int:
        return num_values(self.expert_shapes(config))

    def _num_router(self, config: ModelConfig) -> int:
        # The gate, and a noise projection of the same size that acts in training only.
        return 2 * config.n_experts * config.d_model

    def build_shared(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        form: WeightForm = "model",
    ) -> SharedModel:
        embedding_VD = tensors["embedding.weight"]
        dtype = kernels.hidden_dtype(embedding_VD.dtype)
        positions_SD = sinusoidal_positions(config.max_seq_len, config.d_model).to(embedding_VD).to(dtype)
        head_VD = embedding_VD if config.tie_embedding else tensors["head.weight"]
        return SharedModel(
            Embedding(embedding_VD, positions_SD, dtype),
            [
                self._block(config, tensors, f"blocks.{layer}", kernels, form)
                for layer in range(config.n_layers)
            ],
            kernels.linear(head_VD, norm=_norm(tensors, "output_norm", kernels), form=form),
        )

    def _block(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        prefix: str,
        kernels: Kernels,
        form: WeightForm,
    ) -> Block:
        attention = FusedAttention(
            kernels.linear(
                tensors[f"{prefix}.qkv.weight"],
                norm=_norm(tensors, f"{prefix}.attn_norm", kernels),
                form=form,
                # What is attended to hangs on queries and keys more than on all other rows.
                exact_rows=True,
            ),
            kernels.linear(tensors[f"{prefix}.out.weight"], form=form),
            config.n_heads,
            config.n_kv_heads,
            AttentionForm(1 / sqrt(config.head_dim)),
        )
        gate = RouterWeights(tensors[f"{prefix}.router.weight"])
        return Block(
            attention,
            _norm(tensors, f"{prefix}.ffn_norm", kernels),
            Gate(self.build_router(config, gate, kernels), gate),
        )

    def build_router(self, config: ModelConfig, weights: RouterWeights, kernels: Kernels) -> Router:
        """The K largest logits, then softmax over those."""
        return kernels.router(SoftmaxOfTopK(), weights, config.top_k)

    def build_expert(
        self,
        config: ModelConfig,
        tensors: Mapping[str, Tensor],
        kernels: Kernels,
        *,
        form: WeightForm = "model",
    ) -> Expert:
        return kernels.expert(
            _EXPERT, {_canonical(name): tensor for name, tensor in tensors.items()}, form=form
        )

    def cut_expert(self, tensors: Mapping[str, Tensor], part: ExpertSlice) -> dict[str, Tensor]:
        return cut_expert(tensors, part, _canonical)

    def init_shared(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Their own scheme: Xavier uniform for projections, normal(0, 0.02) embedding with a zero PAD row."""
        tensors = draw(self.shared_shapes(config), generator, xavier_bound)
        tensors["embedding.weight"] = 0.02 * torch.randn(
            config.vocab_size, config.d_model, generator=generator
        )
        tensors["embedding.weight"][0] = 0
        return tensors

    def init_expert(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return draw(self.expert_shapes(config), generator, kaiming_bound)


def _norm_shapes(width: int) -> Shapes:
    return {"weight": (width,), "bias": (width,)}


def _canonical(name: str) -> str:
    part, kind = name.split(".")
    return f"{_EXPERT_PARTS[part]}.{kind}"


def _norm(tensors: Mapping[str, Tensor], prefix: str, kernels: Kernels) -> Norm:
    return kernels.norm(_NORM, tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])


FAMILY: Family = ModularForge()
