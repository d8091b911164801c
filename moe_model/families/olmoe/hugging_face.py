"""An OLMoE as its authors publish it: its `config.json`. All names of tensors are the common ones."""

from typing import ClassVar

from moe_model.config import ModelConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.olmoe.config import OlmoeConfig
from moe_model.families.published import PublishedFolder, read_sizes


class OlmoeFolder(PublishedFolder):
    """Reads the Hugging Face folder of an OLMoE."""

    keys: ClassVar = {
        "d_ff": "intermediate_size",
        **{name: name for name in ("norm_topk_prob", "attention_bias", "clip_qkv")},
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        sizes = read_sizes(
            keys,
            hidden_size=2048,
            num_attention_heads=16,
            num_hidden_layers=16,
            num_experts_per_tok=8,
            vocab_size=50304,
            max_position_embeddings=4096,
        )
        rope = keys.rope(1e4, sizes["max_seq_len"])
        return ModelConfig(
            family="olmoe",
            d_ff=keys.count("intermediate_size", 2048),
            n_experts=keys.count_of(("num_experts", "num_local_experts"), 64),
            own=OlmoeConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-5),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                norm_topk_prob=keys.flag("norm_topk_prob", default=False),
                attention_bias=keys.flag("attention_bias", default=False),
                clip_qkv=keys.number("clip_qkv", 1.0) if keys.has("clip_qkv") else None,
            ),
            **sizes,
        )
