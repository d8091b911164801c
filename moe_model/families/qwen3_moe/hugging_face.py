"""A Qwen3-MoE as its authors publish it: its `config.json`. All names of tensors are the common ones."""

from typing import Any, ClassVar

from moe_model.config import ModelConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.published import PublishedFolder, read_sizes
from moe_model.families.qwen import NUM_EXPERTS, dense_layer_keys, read_dense_layers
from moe_model.families.qwen3_moe.config import Qwen3MoeConfig


class Qwen3MoeFolder(PublishedFolder):
    """Reads the Hugging Face folder of a Qwen3-MoE."""

    keys: ClassVar = {
        "dense_width": "intermediate_size",
        **{name: name for name in ("norm_topk_prob", "attention_bias", "sliding_window")},
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        sizes = read_sizes(
            keys,
            hidden_size=2048,
            num_attention_heads=32,
            num_key_value_heads=4,
            num_hidden_layers=24,
            num_experts_per_tok=8,
            vocab_size=151936,
            max_position_embeddings=32768,
        )
        rope = keys.rope(1e4, sizes["max_seq_len"])
        # Of other families of Qwen; files of this one have them all the same.
        keys.ignore("max_window_layers")
        keys.expect("shared_expert_intermediate_size", 0)
        keys.expect("qkv_bias", False)
        keys.expect("use_qk_norm", True)
        return ModelConfig(
            family="qwen3_moe",
            d_ff=keys.count("moe_intermediate_size", 768),
            n_experts=keys.count_of(NUM_EXPERTS, 128),
            dense_layers=read_dense_layers(keys, sizes["n_layers"]),
            own=Qwen3MoeConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                norm_topk_prob=keys.flag("norm_topk_prob", default=False),
                attention_bias=keys.flag("attention_bias", default=False),
                dense_width=keys.count("intermediate_size", 6144),
                sliding_window=_read_window(keys),
            ),
            **sizes,
        )

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        found = super().write_config(config) | dense_layer_keys(config.dense_layers)
        return found | {"use_sliding_window": found["sliding_window"] is not None}


def _read_window(keys: ConfigKeys) -> int | None:
    """It counts only where use_sliding_window says so; null is none."""
    if not keys.flag("use_sliding_window", default=False):
        keys.ignore("sliding_window")
        return None
    return None if keys.is_null("sliding_window") else keys.count("sliding_window", 4096)
