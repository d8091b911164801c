"""Shapes of models for tests of routing: only what routing asks of them."""

from scaling.shape import Shape


def shape(layers: int = 3, experts: int = 8, top_k: int = 2) -> Shape:
    return Shape(
        name="made",
        family="made",
        d_model=4,
        n_layers=layers + 1,
        moe_layers=tuple(range(1, layers + 1)),
        n_experts=experts,
        top_k=top_k,
        vocab_size=10,
        layer_params=(),
        layer_matrices=(),
        expert_params=1,
        expert_matrices=(),
        head_params=1,
        embedding_params=1,
        cache_values=1,
        attention_values=1,
    )
