"""Qwen3-MoE: as Mixtral, with norms of the heads of queries and keys.

Source: Qwen team, "Qwen3 Technical Report", 2025.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.qwen3_moe.config import Qwen3MoeConfig
from moe_model.families.qwen3_moe.hugging_face import Qwen3MoeFolder
from moe_model.layers.router_rules import softmax_rule
from moe_model.layers.specs import NormSpec, RotarySpec


class Qwen3Moe(DecoderFamily):
    """The family of `Qwen3MoeForCausalLM`."""

    name = "qwen3_moe"
    architecture = "Qwen3MoeForCausalLM"
    own_config = Qwen3MoeConfig
    hugging_face = Qwen3MoeFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        own = config.own
        assert isinstance(own, Qwen3MoeConfig)
        attention = GroupedAttention(
            1 / sqrt(config.head_dim),
            RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling),
            query_key_norm="head",
            has_qkv_biases=own.attention_bias,
            has_out_bias=own.attention_bias,
            windows=(own.sliding_window,) * config.n_layers if own.sliding_window else (),
        )
        rule = softmax_rule(is_renormalised=own.norm_topk_prob)
        return DecoderSpec(NormSpec("rms_norm", own.norm_eps), attention, rule, dense_width=own.dense_width)


FAMILY: Family = Qwen3Moe()
