"""Mixtral: RMSNorm, rotary positions, grouped-query attention, SwiGLU experts without biases.

Source: Jiang et al., "Mixtral of Experts", 2024. Shapes: D d_model, F d_ff, E experts, V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.base import Family, Shapes
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.mixtral.hugging_face import MixtralFolder
from moe_model.families.weights import draw, kaiming_bound, num_values
from moe_model.kernels.base import Kernels, Norm, Router
from moe_model.layers.dense import Block, Embedding, FusedAttention, Gate, SharedModel
from moe_model.layers.dispatch import Expert
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.layers.specs import MAX_ROTARY_DIM, CacheSpec, ExpertSpec, NormSpec, RotarySpec

_EXPERT = ExpertSpec(norm=None, is_gated=True, activation="silu", has_biases=False)
_EMBEDDING_STD = 0.02


class Mixtral:
    """The family of `MixtralForCausalLM`."""

    name = "mixtral"
    architecture = "MixtralForCausalLM"
    own_config = MixtralConfig
    hugging_face = MixtralFolder()

    def check(self, config: ModelConfig) -> None:
        if config.dense_layers:
            raise ConfigError("dense_layers: every layer of this family has experts")
        if config.head_dim % 2:
            raise ConfigError(f"head_dim: {config.head_dim} is odd, and positions turn pairs")
        if config.head_dim > MAX_ROTARY_DIM:
            raise ConfigError(f"head_dim: {config.head_dim} is more than {MAX_ROTARY_DIM}")

    def shared_shapes(self, config: ModelConfig) -> Shapes:
        d, q, kv = config.d_model, config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        shapes: Shapes = {"embedding.weight": (config.vocab_size, d), "output_norm.weight": (d,)}
        if not config.tie_embedding:
            shapes["head.weight"] = (config.vocab_size, d)
        for layer in range(config.n_layers):
            shapes |= {
                f"blocks.{layer}.attn_norm.weight": (d,),
                f"blocks.{layer}.q.weight": (q, d),
                f"blocks.{layer}.k.weight": (kv, d),
                f"blocks.{layer}.v.weight": (kv, d),
                f"blocks.{layer}.out.weight": (d, q),
                f"blocks.{layer}.ffn_norm.weight": (d,),
                f"blocks.{layer}.router.weight": (config.n_experts, d),
            }
        return shapes

    def expert_shapes(self, config: ModelConfig) -> Shapes:
        d, f = config.d_model, config.d_ff
        return {"gate.weight": (f, d), "up.weight": (f, d), "down.weight": (d, f)}

    def cache_spec(self, config: ModelConfig) -> CacheSpec:
        return CacheSpec.of_heads(config.n_layers, config.n_kv_heads, config.head_dim)

    def num_params(self, config: ModelConfig) -> int:
        experts = config.num_expert_modules * num_values(self.expert_shapes(config))
        return num_values(self.shared_shapes(config)) + experts

    def num_active_params_per_token(self, config: ModelConfig) -> int:
        experts = len(config.moe_layers) * config.top_k * num_values(self.expert_shapes(config))
        return num_values(self.shared_shapes(config)) + experts

    def build_shared(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], kernels: Kernels
    ) -> SharedModel:
        embedding_VD = tensors["embedding.weight"]
        head_VD = embedding_VD if config.tie_embedding else tensors["head.weight"]
        output_norm = _norm(config, tensors["output_norm.weight"], kernels)
        return SharedModel(
            Embedding(embedding_VD, dtype=kernels.hidden_dtype(embedding_VD.dtype)),
            [self._block(config, tensors, f"blocks.{layer}", kernels) for layer in range(config.n_layers)],
            kernels.linear(head_VD, norm=output_norm),
        )

    def _block(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str, kernels: Kernels
    ) -> Block:
        qkv_OD = torch.cat([tensors[f"{prefix}.{part}.weight"] for part in ("q", "k", "v")])
        attention = FusedAttention(
            kernels.linear(qkv_OD, norm=_norm(config, tensors[f"{prefix}.attn_norm.weight"], kernels)),
            kernels.linear(tensors[f"{prefix}.out.weight"]),
            config.n_heads,
            config.n_kv_heads,
            kernels.rotary(RotarySpec(config.head_dim, _own(config).rope_theta)),
        )
        gate_ED = tensors[f"{prefix}.router.weight"]
        return Block(
            attention,
            _norm(config, tensors[f"{prefix}.ffn_norm.weight"], kernels),
            Gate(self.build_router(config, gate_ED, kernels), gate_ED),
        )

    def build_router(self, config: ModelConfig, gate_ED: Tensor, kernels: Kernels) -> Router:
        """Softmax, the K largest, divided by their sum: the same as softmax over the K largest."""
        return kernels.router(SoftmaxOfTopK(), gate_ED, config.top_k)

    def build_expert(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], kernels: Kernels, *, int8: bool = False
    ) -> Expert:
        return kernels.expert(_EXPERT, tensors, int8=int8)

    def init_shared(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        tensors = draw(self.shared_shapes(config), generator, kaiming_bound)
        shape = config.vocab_size, config.d_model
        return tensors | {"embedding.weight": _EMBEDDING_STD * torch.randn(shape, generator=generator)}

    def init_expert(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return draw(self.expert_shapes(config), generator, kaiming_bound)


def _own(config: ModelConfig) -> MixtralConfig:
    assert isinstance(config.own, MixtralConfig)
    return config.own


def _norm(config: ModelConfig, weight_D: Tensor, kernels: Kernels) -> Norm:
    return kernels.norm(NormSpec("rms_norm", _own(config).norm_eps), weight_D)


FAMILY: Family = Mixtral()
