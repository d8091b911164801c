"""A Qwen2-MoE as its authors publish it: its `config.json`, and the names of its shared expert."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.published import PublishedFolder, read_sizes
from moe_model.families.qwen import NUM_EXPERTS, dense_layer_keys, read_dense_layers
from moe_model.families.qwen2_moe.config import Qwen2MoeConfig

_TYPES = ("full_attention", "sliding_attention")
_PARTS = ("gate", "up", "down")


class Qwen2MoeFolder(PublishedFolder):
    """Reads the Hugging Face folder of a Qwen2-MoE."""

    keys: ClassVar = {
        "dense_width": "intermediate_size",
        "shared_width": "shared_expert_intermediate_size",
        **{name: name for name in ("norm_topk_prob", "qkv_bias", "sliding_window")},
    }
    block: ClassVar = {
        "shared.router.weight": "mlp.shared_expert_gate.weight",
        **{f"shared.{part}.weight": f"mlp.shared_expert.{part}_proj.weight" for part in _PARTS},
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        sizes = read_sizes(
            keys,
            hidden_size=2048,
            num_attention_heads=16,
            num_key_value_heads=16,
            num_hidden_layers=24,
            num_experts_per_tok=4,
            vocab_size=151936,
            max_position_embeddings=32768,
        )
        rope = keys.rope(1e4, sizes["max_seq_len"])
        window, window_layers = _read_windows(keys, sizes["n_layers"])
        return ModelConfig(
            family="qwen2_moe",
            d_ff=keys.count("moe_intermediate_size", 1408),
            n_experts=keys.count_of(NUM_EXPERTS, 60),
            dense_layers=read_dense_layers(keys, sizes["n_layers"]),
            own=Qwen2MoeConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                norm_topk_prob=keys.flag("norm_topk_prob", default=False),
                qkv_bias=keys.flag("qkv_bias", default=True),
                dense_width=keys.count("intermediate_size", 5632),
                shared_width=keys.count("shared_expert_intermediate_size", 5632),
                sliding_window=window,
                window_layers=window_layers,
            ),
            **sizes,
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        own, found = config.own, super().write_config(config)
        assert isinstance(own, Qwen2MoeConfig)
        return {
            **(found | dense_layer_keys(config.dense_layers)),
            "use_sliding_window": own.sliding_window is not None,
            "layer_types": [_TYPES[layer in own.window_layers] for layer in range(config.n_layers)],
        }


def _read_windows(keys: ConfigKeys, n_layers: int) -> tuple[int | None, tuple[int, ...]]:
    """The window, and the layers that have it. Without a list of types these are, of the layers before
    max_window_layers, the first, the third and so on; all of it only if use_sliding_window says so."""
    has_windows = keys.flag("use_sliding_window", default=False)
    before = keys.count("max_window_layers", 28, least=0)
    types = keys.items("layer_types", str)
    if types is not None and (len(types) != n_layers or not set(types) <= set(_TYPES)):
        raise ConfigError(f"layer_types: expected {' or '.join(_TYPES)} for each of {n_layers} layers")
    if types is not None:
        layers = tuple(layer for layer, each in enumerate(types) if each == "sliding_attention")
    else:
        layers = tuple(range(0, min(before, n_layers), 2)) if has_windows else ()
    if not layers:
        keys.ignore("sliding_window")
        return None, ()
    if not has_windows:
        raise ConfigError("layer_types: some are sliding_attention, and use_sliding_window is not true")
    if keys.is_null("sliding_window"):
        raise ConfigError("sliding_window: is null, and layers have one")
    return keys.count("sliding_window", 4096), layers
