"""Qwen2-MoE: as Mixtral, with biases before attention and a shared expert that counts by a sigmoid.

Source: Qwen team, "Qwen1.5-MoE: Matching 7B Model Performance with 1/3 Activated Parameters", 2024.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.errors import ConfigError
from moe_model.families.base import Family
from moe_model.families.qwen2_moe.config import Qwen2MoeConfig
from moe_model.families.qwen2_moe.hugging_face import Qwen2MoeFolder
from moe_model.layers.router_rules import softmax_rule
from moe_model.layers.specs import NormSpec, RotarySpec


class Qwen2Moe(DecoderFamily):
    """The family of `Qwen2MoeForCausalLM`."""

    name = "qwen2_moe"
    architecture = "Qwen2MoeForCausalLM"
    own_config = Qwen2MoeConfig
    hugging_face = Qwen2MoeFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        own = config.own
        assert isinstance(own, Qwen2MoeConfig)
        if any(layer >= config.n_layers for layer in own.window_layers):
            raise ConfigError(f"window_layers: some are not in [0, {config.n_layers})")
        layers = range(config.n_layers) if own.window_layers else ()
        attention = GroupedAttention(
            1 / sqrt(config.head_dim),
            RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling),
            has_qkv_biases=own.qkv_bias,
            windows=tuple(own.window_of(layer) for layer in layers),
        )
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            attention,
            softmax_rule(is_renormalised=own.norm_topk_prob),
            dense_width=own.dense_width,
            shared_width=own.shared_width,
            is_shared_gated=True,
        )


FAMILY: Family = Qwen2Moe()
