"""What a family says about itself, checked against an independent count and a freshly built model."""

from math import prod

import pytest
import torch

from moe_model import AssembledModel, ModelConfig
from moe_model.errors import ConfigError
from moe_model.families import REGISTRY, family_of
from moe_model.families.modularforge.family import ModularForge
from tests.models import TINY, Weights, build_model

CONFIGS = [
    ModelConfig(),
    TINY,
    ModelConfig(d_model=6, n_heads=3, n_layers=1, d_ff=5, n_experts=1, top_k=1, vocab_size=3, max_seq_len=1),
    ModelConfig(d_model=8, n_heads=1, n_layers=2, d_ff=3, n_experts=7, top_k=3, vocab_size=11, max_seq_len=4),
]


def test_modularforge_is_known_by_both_its_names() -> None:
    family = family_of(ModelConfig())
    assert (family.name, family.architecture) == ("modularforge", "AssembledMoEModel")


@pytest.mark.parametrize("name", ["", "unheard-of", "x" * 5000, "a\nb"])
def test_an_unknown_family_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^family: unknown .*known: {', '.join(REGISTRY)}$") as caught:
        family_of(ModelConfig(family=name))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("config", CONFIGS)
def test_counts_are_those_of_their_state_dict(config: ModelConfig) -> None:
    """Counted over the parameters that an `AssembledMoEModel` registers."""
    d, f, e = config.d_model, config.d_ff, config.n_experts
    head = 0 if config.tie_embedding else config.vocab_size * d
    block = 2 * 2 * d + 3 * d * d + d * d
    shared = config.vocab_size * d + head + config.n_layers * block + 2 * d
    expert = 2 * d + f * d + f + d * f + d
    router = 2 * e * d
    family = family_of(config)
    assert family.num_params(config) == shared + config.n_layers * (2 * d + router + e * expert)
    active = shared + config.n_layers * (config.top_k * expert + router)
    assert family.num_active_params_per_token(config) == active


def test_the_default_model_has_the_published_size() -> None:
    family, config = ModularForge(), ModelConfig()
    assert round(family.num_params(config) / 1e6, 2) == 54.63
    assert round(family.num_active_params_per_token(config) / 1e6, 2) == 29.42


@pytest.mark.parametrize("config", CONFIGS[1:])
def test_initial_weights_make_a_model_that_runs(config: ModelConfig) -> None:
    family, generator = family_of(config), torch.Generator().manual_seed(3)
    shared = family.init_shared(config, generator)
    keys = [(layer, expert) for layer in range(config.n_layers) for expert in range(config.n_experts)]
    experts = {key: family.init_expert(config, generator) for key in keys}
    assert {name: tuple(tensor.shape) for name, tensor in shared.items()} == family.shared_shapes(config)
    for tensors in experts.values():
        assert {n: tuple(tensor.shape) for n, tensor in tensors.items()} == family.expert_shapes(config)
    assert not shared["embedding.weight"][0].any(), "the PAD row is zero"
    logits, aux_loss = AssembledModel(build_model(config, Weights(shared, experts))).forward(
        torch.zeros(2, 1, dtype=torch.int64)
    )
    assert logits.shape == (2, 1, config.vocab_size)
    assert logits.isfinite().all()
    assert aux_loss is not None
    assert aux_loss > 0


def test_initial_weights_follow_their_seed() -> None:
    def first(seed: int) -> torch.Tensor:
        return family_of(TINY).init_shared(TINY, torch.Generator().manual_seed(seed))["embedding.weight"]

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


@pytest.mark.parametrize("config", CONFIGS)
def test_shapes_hold_every_parameter_that_is_used(config: ModelConfig) -> None:
    family = family_of(config)
    stored = sum(map(prod, family.shared_shapes(config).values()))
    stored += config.n_layers * config.n_experts * sum(map(prod, family.expert_shapes(config).values()))
    # Theirs also registers the noise projection and a second ffn_norm of each layer; neither acts here.
    unused = config.n_layers * (config.n_experts * config.d_model + 2 * config.d_model)
    assert stored + unused == family.num_params(config)
