"""FlexOlmo: as OLMoE, with a norm after attention and one after the experts, and none before them.

Source: Shi et al., "FlexOlmo: Open Language Models for Flexible Data Use", 2025.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.flex_olmo.config import FlexOlmoConfig
from moe_model.families.flex_olmo.hugging_face import FlexOlmoFolder
from moe_model.layers.router_rules import softmax_rule
from moe_model.layers.specs import NormSpec, RotarySpec


class FlexOlmo(DecoderFamily):
    """The family of `FlexOlmoForCausalLM`."""

    name = "flex_olmo"
    architecture = "FlexOlmoForCausalLM"
    own_config = FlexOlmoConfig
    hugging_face = FlexOlmoFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        own = config.own
        assert isinstance(own, FlexOlmoConfig)
        attention = GroupedAttention(
            1 / sqrt(config.head_dim),
            RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling, is_rounded_once=True),
            query_key_norm="whole",
            has_qkv_biases=own.attention_bias,
            has_out_bias=own.attention_bias,
        )
        rule = softmax_rule(is_renormalised=own.norm_topk_prob)
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps, is_rounded_once=True), attention, rule, norm_place="after"
        )


FAMILY: Family = FlexOlmo()
