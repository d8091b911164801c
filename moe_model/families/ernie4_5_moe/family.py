"""ERNIE 4.5: grouped-query attention whose neighbouring values turn together, shared and corrected experts.

Source: Baidu, "ERNIE 4.5 Technical Report", 2025.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.ernie4_5_moe.config import ErnieConfig
from moe_model.families.ernie4_5_moe.hugging_face import ErnieFolder
from moe_model.layers.router_rules import CorrectedSoftmax
from moe_model.layers.specs import NormSpec, RotarySpec


class Ernie(DecoderFamily):
    """The family of `Ernie4_5_MoeForCausalLM`."""

    name = "ernie4_5_moe"
    architecture = "Ernie4_5_MoeForCausalLM"
    own_config = ErnieConfig
    hugging_face = ErnieFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Router: softmax, a correction for the choice alone."""
        own = config.own
        assert isinstance(own, ErnieConfig)
        rotary = RotarySpec(
            config.head_dim, own.rope_theta, "interleaved", own.rope_scaling, is_rounded_once=True
        )
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            GroupedAttention(1 / sqrt(config.head_dim), rotary),
            CorrectedSoftmax(own.norm_min),
            has_correction=True,
            dense_width=own.dense_width,
            shared_width=own.shared_width,
        )


FAMILY: Family = Ernie()
