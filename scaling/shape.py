"""A model's shape, as planning and simulating need it: bytes and operations, from its config alone.

Shapes: D d_model, L layers, E experts of a layer, K chosen of them.
"""

from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Literal

from msgspec import Struct

from moe_model.checkpoint.like import config_like
from moe_model.checkpoint.reader import Checkpoint
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import family_of


class Product(Struct, frozen=True):
    """A product of every row of a layer's shared part, as the step's program has it: queries, keys and values
    are one, of exact rows; a network (a shared expert, a dense layer's) is one. `params`: its weights."""

    kind: Literal["linear", "exact", "router", "network"]
    params: int


class Shape(Struct, frozen=True):
    """Numbers of weights, and where they are.

    `layer_params`, by layer: what rows of a step are multiplied with that is no expert (attention, router,
    shared expert, dense network). `expert_params`: of one expert. `expert_matrices`: (outputs, inputs) of one
    expert. `cache_values`: what all layers keep of a token. `attention_values`: numbers that a head's query
    and weights meet of a position, all heads of one layer: two operations each. `layer_products`: what
    `layer_matrices` are multiplied as; empty: one by one."""

    name: str
    family: str
    d_model: int
    n_layers: int
    moe_layers: tuple[int, ...]
    n_experts: int
    top_k: int
    vocab_size: int
    layer_params: tuple[int, ...]
    layer_matrices: tuple[tuple[tuple[int, int], ...], ...]
    expert_params: int
    expert_matrices: tuple[tuple[int, int], ...]
    head_params: int
    embedding_params: int
    cache_values: int
    attention_values: int
    layer_products: tuple[tuple[Product, ...], ...] = ()

    @property
    def num_experts(self) -> int:
        """Of all layers together."""
        return len(self.moe_layers) * self.n_experts

    @property
    def shared_params(self) -> int:
        """What the coordinator reads in every step."""
        return sum(self.layer_params) + self.head_params

    @property
    def total_params(self) -> int:
        return self.shared_params + self.embedding_params + self.num_experts * self.expert_params


def shape_of(model: Path, num_layers: int | None = None) -> Shape:
    """Of a checkpoint's folder, or of a config.json. Raises CheckpointError, ConfigError."""
    return shape_of_config(config_of(model, num_layers), model.stem)


def config_of(model: Path, num_layers: int | None = None) -> ModelConfig:
    """Raises CheckpointError, ConfigError."""
    if not model.is_dir():
        if not model.is_file():
            raise ConfigError(f"{model}: neither a checkpoint's folder nor a config.json")
        return config_like(model, num_layers)
    if num_layers is not None:
        raise ConfigError(f"{model}: layers: of a config.json only")
    return Checkpoint.open(model).config


def shape_of_config(config: ModelConfig, name: str) -> Shape:
    family = family_of(config)
    shared, expert = family.shared_shapes(config), family.expert_shapes(config)
    embedding = prod(shared["embedding.weight"])
    by_layer = [
        {name: shape for name, shape in shared.items() if name.startswith(f"blocks.{layer}.")}
        for layer in range(config.n_layers)
    ]
    spec = family.cache_spec(config)
    return Shape(
        name=name,
        family=config.family,
        d_model=config.d_model,
        n_layers=config.n_layers,
        moe_layers=config.moe_layers,
        n_experts=config.n_experts,
        top_k=config.top_k,
        vocab_size=config.vocab_size,
        layer_params=tuple(_num(layer.values()) for layer in by_layer),
        layer_matrices=tuple(_matrices(layer.values()) for layer in by_layer),
        expert_params=_num(expert.values()),
        expert_matrices=_matrices(expert.values()),
        head_params=embedding,
        embedding_params=0 if config.tie_embedding else embedding,
        cache_values=spec.values_per_token,
        attention_values=2 * config.n_heads * config.head_dim,
        layer_products=tuple(map(_products, by_layer)),
    )


def _num(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(map(prod, shapes))


def _matrices(shapes: Iterable[tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
    return tuple((shape[0], shape[1]) for shape in shapes if len(shape) == 2)


# Of latent attention (moe_model/decoder/build_latent.py).
_EXACT = ("kv_down", "kv_up", "q_down", "q_up")
_JOINED = ("q", "k", "v", "qkv")


def _products(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Product, ...]:
    """Of one layer; its tensors are `blocks.LAYER.PART.weight` or `blocks.LAYER.NETWORK.PART.weight`."""
    joined, networks, found = 0, dict[str, int](), []
    for name, shape in shapes.items():
        parts = name.split(".")[2:-1]
        params = prod(shape)
        if len(shape) != 2 or shape[0] == 1:
            continue
        if len(parts) > 1 and parts[-1] != "router":
            networks[parts[0]] = networks.get(parts[0], 0) + params
        elif parts[-1] in _JOINED:
            joined += params
        else:
            kind: Literal["linear", "exact", "router"] = "exact" if parts[-1] in _EXACT else "linear"
            found.append(Product("router" if parts[-1] == "router" else kind, params))
    found += [Product("exact", joined)] if joined else []
    return (*found, *(Product("network", params) for params in networks.values()))
