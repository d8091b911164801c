"""A FlexOlmo as its authors publish it: its `config.json`, and the names of its norms."""

from typing import ClassVar

from moe_model.config import ModelConfig
from moe_model.families.flex_olmo.config import FlexOlmoConfig
from moe_model.families.hugging_face import ConfigKeys
from moe_model.families.published import PublishedFolder, read_sizes


class FlexOlmoFolder(PublishedFolder):
    """Reads the Hugging Face folder of a FlexOlmo."""

    keys: ClassVar = {
        "d_ff": "intermediate_size",
        **{name: name for name in ("norm_topk_prob", "attention_bias")},
    }

    # The name that other families have for the norm before the feed-forward network is here of the one
    # after attention.
    block: ClassVar = {
        "attn_norm.weight": "post_attention_layernorm.weight",
        "ffn_norm.weight": "post_feedforward_layernorm.weight",
    }

    def read_config(self, keys: ConfigKeys) -> ModelConfig:
        sizes = read_sizes(
            keys,
            hidden_size=4096,
            num_attention_heads=32,
            num_hidden_layers=32,
            num_experts_per_tok=5,
            vocab_size=100352,
            max_position_embeddings=4096,
        )
        rope = keys.rope(5e5, sizes["max_seq_len"])
        return ModelConfig(
            family="flex_olmo",
            d_ff=keys.count("intermediate_size", 11008),
            n_experts=keys.count_of(("num_experts", "num_local_experts"), 7),
            own=FlexOlmoConfig(
                norm_eps=keys.number("rms_norm_eps", 1e-6),
                rope_theta=rope.theta,
                rope_scaling=rope.scaling,
                norm_topk_prob=keys.flag("norm_topk_prob", default=False),
                attention_bias=keys.flag("attention_bias", default=False),
            ),
            **sizes,
        )
