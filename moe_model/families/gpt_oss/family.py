"""gpt-oss: grouped-query attention with sinks, every other layer over a window, gated experts with limits.

Source: OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", 2025.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.gpt_oss.config import GptOssConfig
from moe_model.families.gpt_oss.hugging_face import GptOssFolder
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.layers.specs import ExpertSpec, NormSpec, RotarySpec, SwigluLimit


class GptOss(DecoderFamily):
    """The family of `GptOssForCausalLM`."""

    name = "gpt_oss"
    architecture = "GptOssForCausalLM"
    own_config = GptOssConfig
    hugging_face = GptOssFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Router: the K largest logits, biases included, then softmax over those."""
        own = config.own
        assert isinstance(own, GptOssConfig)
        limit = SwigluLimit(own.swiglu_limit, own.swiglu_alpha)
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps, is_rounded_once=True),
            GroupedAttention(
                1 / sqrt(config.head_dim),
                RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling),
                has_qkv_biases=own.attention_bias,
                has_out_bias=own.attention_bias,
                has_sinks=True,
                windows=own.windows(config.n_layers),
            ),
            SoftmaxOfTopK(),
            ExpertSpec(norm=None, is_gated=True, activation="silu", has_biases=True, limit=limit),
            has_router_bias=True,
        )


FAMILY: Family = GptOss()
