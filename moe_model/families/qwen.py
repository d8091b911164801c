"""What the mixture-of-experts models of Qwen have in common in their config.json."""

from moe_model.families.hugging_face import ConfigKeys

# As version 4 of the library writes the key, and as version 5 does.
NUM_EXPERTS = ("num_experts", "num_local_experts")


def read_dense_layers(keys: ConfigKeys, n_layers: int) -> tuple[int, ...]:
    """Layer i has experts if i + 1 is a multiple of decoder_sparse_step and i is not in mlp_only_layers,
    which may also name layers that there are not. Raises ConfigError naming the key."""
    step, without = keys.count("decoder_sparse_step", 1), frozenset(keys.items("mlp_only_layers", int) or ())
    return tuple(layer for layer in range(n_layers) if layer in without or (layer + 1) % step)


def dense_layer_keys(dense_layers: tuple[int, ...]) -> dict[str, object]:
    """What is read as these."""
    return {"decoder_sparse_step": 1, "mlp_only_layers": list(dense_layers)}
