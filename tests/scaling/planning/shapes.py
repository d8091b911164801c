"""A model's shape without its config."""

from scaling.shape import Shape


def small_shape(num_layers: int, num_experts: int, top_k: int) -> Shape:
    return Shape(
        name="small",
        family="modularforge",
        d_model=64,
        n_layers=num_layers,
        moe_layers=tuple(range(num_layers)),
        n_experts=num_experts,
        top_k=top_k,
        vocab_size=512,
        layer_params=(64 * 64,) * num_layers,
        layer_matrices=(((64, 64),),) * num_layers,
        expert_params=2 * 64 * 128,
        expert_matrices=((128, 64), (64, 128)),
        head_params=64 * 512,
        embedding_params=0,
        cache_values=128 * num_layers,
        attention_values=128,
    )
