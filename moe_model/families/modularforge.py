"""ModularForge: LayerNorm, fixed sinusoidal positions, fused attention, GELU experts with their own norm.

Shapes: D d_model, F d_ff, E experts, V vocabulary, R rows.
"""

from collections.abc import Callable, Mapping
from math import prod, sqrt

import torch
from torch import Tensor

from moe_model.config import ModelConfig
from moe_model.families.base import Shapes
from moe_model.kernels.base import Kernels, Norm
from moe_model.layers.dense import (
    Block,
    Embedding,
    FusedAttention,
    SharedModel,
    sinusoidal_positions,
)
from moe_model.layers.dispatch import Expert
from moe_model.layers.expert_ffn import GeluExpert


class ModularForge:
    """The family of `AssembledMoEModel`."""

    name = "modularforge"
    architecture = "AssembledMoEModel"

    def shared_shapes(self, config: ModelConfig) -> Shapes:
        d = config.d_model
        shapes: Shapes = {"embedding.weight": (config.vocab_size, d)}
        for layer in range(config.n_layers):
            shapes |= _prefixed(f"blocks.{layer}.attn_norm", _norm_shapes(d))
            shapes[f"blocks.{layer}.qkv.weight"] = (3 * d, d)
            shapes[f"blocks.{layer}.out.weight"] = (d, d)
            shapes |= _prefixed(f"blocks.{layer}.ffn_norm", _norm_shapes(d))
            shapes[f"blocks.{layer}.router.weight"] = (config.n_experts, d)
        shapes |= _prefixed("output_norm", _norm_shapes(d))
        if not config.tie_embedding:
            shapes["head.weight"] = (config.vocab_size, d)
        return shapes

    def expert_shapes(self, config: ModelConfig) -> Shapes:
        d, f = config.d_model, config.d_ff
        return _prefixed("norm", _norm_shapes(d)) | {
            "fc1.weight": (f, d),
            "fc1.bias": (f,),
            "fc2.weight": (d, f),
            "fc2.bias": (d,),
        }

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
        ours = sum(prod(shape) for shape in self.shared_shapes(config).values())
        return ours - config.n_layers * config.n_experts * config.d_model

    def _num_expert(self, config: ModelConfig) -> int:
        return sum(prod(shape) for shape in self.expert_shapes(config).values())

    def _num_router(self, config: ModelConfig) -> int:
        # The gate, and a noise projection of the same size that acts in training only.
        return 2 * config.n_experts * config.d_model

    def build_shared(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], kernels: Kernels
    ) -> SharedModel:
        embedding_VD = tensors["embedding.weight"]
        dtype = kernels.hidden_dtype(embedding_VD.dtype)
        positions_SD = sinusoidal_positions(config.max_seq_len, config.d_model).to(embedding_VD).to(dtype)
        head_VD = embedding_VD if config.tie_embedding else tensors["head.weight"]
        return SharedModel(
            Embedding(embedding_VD, positions_SD, dtype),
            [self._block(config, tensors, f"blocks.{layer}", kernels) for layer in range(config.n_layers)],
            kernels.linear(head_VD, norm=_norm(tensors, "output_norm", kernels)),
        )

    def _block(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], prefix: str, kernels: Kernels
    ) -> Block:
        attention = FusedAttention(
            kernels.linear(
                tensors[f"{prefix}.qkv.weight"], norm=_norm(tensors, f"{prefix}.attn_norm", kernels)
            ),
            kernels.linear(tensors[f"{prefix}.out.weight"]),
            config.n_heads,
        )
        gate_ED = tensors[f"{prefix}.router.weight"]
        return Block(
            attention,
            _norm(tensors, f"{prefix}.ffn_norm", kernels),
            kernels.router(gate_ED, config.top_k),
            gate_ED,
        )

    def build_expert(
        self, config: ModelConfig, tensors: Mapping[str, Tensor], kernels: Kernels, *, int8: bool = False
    ) -> Expert:
        norm = _norm(tensors, "norm", kernels)
        return GeluExpert(
            kernels.linear(tensors["fc1.weight"], tensors["fc1.bias"], "gelu", norm, int8=int8),
            kernels.linear(tensors["fc2.weight"], tensors["fc2.bias"], int8=int8),
        )

    def init_shared(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        """Their own scheme: Xavier uniform for projections, normal(0, 0.02) embedding with a zero PAD row."""
        tensors = _init(self.shared_shapes(config), generator, _xavier_bound)
        tensors["embedding.weight"] = 0.02 * torch.randn(
            config.vocab_size, config.d_model, generator=generator
        )
        tensors["embedding.weight"][0] = 0
        return tensors

    def init_expert(self, config: ModelConfig, generator: torch.Generator) -> dict[str, Tensor]:
        return _init(self.expert_shapes(config), generator, _kaiming_bound)


def _norm_shapes(width: int) -> Shapes:
    return {"weight": (width,), "bias": (width,)}


def _prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def _norm(tensors: Mapping[str, Tensor], prefix: str, kernels: Kernels) -> Norm:
    return kernels.norm(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])


def _xavier_bound(shape: tuple[int, ...]) -> float:
    return sqrt(6 / (shape[0] + shape[1]))


def _kaiming_bound(shape: tuple[int, ...]) -> float:
    return sqrt(6 / shape[1])


def _init(
    shapes: Shapes, generator: torch.Generator, bound: Callable[[tuple[int, ...]], float]
) -> dict[str, Tensor]:
    return {name: _init_tensor(name, shape, generator, bound) for name, shape in shapes.items()}


def _init_tensor(
    name: str, shape: tuple[int, ...], generator: torch.Generator, bound: Callable[[tuple[int, ...]], float]
) -> Tensor:
    """Matrices uniform within the bound of their shape, norm scales 1, biases 0."""
    if len(shape) == 1:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    return (2 * torch.rand(shape, generator=generator) - 1) * bound(shape)
