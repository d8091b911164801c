"""OLMoE: as Mixtral, with norms of queries and keys over all heads of a row.

Source: Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.olmoe.config import OlmoeConfig
from moe_model.families.olmoe.hugging_face import OlmoeFolder
from moe_model.layers.router_rules import softmax_rule
from moe_model.layers.specs import NormSpec, RotarySpec


class Olmoe(DecoderFamily):
    """The family of `OlmoeForCausalLM`."""

    name = "olmoe"
    architecture = "OlmoeForCausalLM"
    own_config = OlmoeConfig
    hugging_face = OlmoeFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        own = config.own
        assert isinstance(own, OlmoeConfig)
        attention = GroupedAttention(
            1 / sqrt(config.head_dim),
            RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling),
            query_key_norm="whole",
            has_qkv_biases=own.attention_bias,
            has_out_bias=own.attention_bias,
            clamp=own.clip_qkv,
        )
        rule = softmax_rule(is_renormalised=own.norm_topk_prob)
        return DecoderSpec(NormSpec("rms_norm", own.norm_eps), attention, rule)


FAMILY: Family = Olmoe()
