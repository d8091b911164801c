"""Granite's mixtures of experts: as Mixtral, with multipliers of embeddings, branches, attention and logits.

Source: Granite team, IBM, "Granite 3.0 Language Models", 2024.
"""

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.granitemoe.config import GraniteMoeConfig
from moe_model.families.granitemoe.hugging_face import GraniteMoeFolder
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.layers.specs import NormSpec, RotarySpec


class GraniteMoe(DecoderFamily):
    """The family of `GraniteMoeForCausalLM` and `GraniteMoeSharedForCausalLM`."""

    name = "granitemoe"
    architecture = "GraniteMoeForCausalLM"
    own_config = GraniteMoeConfig
    hugging_face = GraniteMoeFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        own = config.own
        assert isinstance(own, GraniteMoeConfig)
        attention = GroupedAttention(
            own.attention_multiplier,
            RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling),
            has_qkv_biases=own.attention_bias,
            has_out_bias=own.attention_bias,
        )
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            attention,
            SoftmaxOfTopK(),
            shared_width=own.shared_width or 0,
            embedding_scale=own.embedding_multiplier,
            residual_scale=own.residual_multiplier,
            logits_scale=own.logits_scaling,
        )


FAMILY: Family = GraniteMoe()
