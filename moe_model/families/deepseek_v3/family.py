"""DeepSeek-V3: latent attention, shared experts, experts chosen by corrected sigmoids, in groups.

Source: DeepSeek-V3 (2024). Moonlight and Kimi-K2 are the same network in other sizes.
"""

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec
from moe_model.families.base import Family
from moe_model.families.deepseek import DeepseekConfig
from moe_model.families.deepseek_v3.hugging_face import DeepseekV3Folder
from moe_model.layers.specs import NormSpec


class DeepseekV3(DecoderFamily):
    """The family of `DeepseekV3ForCausalLM`."""

    name = "deepseek_v3"
    architecture = "DeepseekV3ForCausalLM"
    own_config = DeepseekConfig
    hugging_face = DeepseekV3Folder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Raises ConfigError naming the key of a size or choice that this family cannot have."""
        own = config.own
        assert isinstance(own, DeepseekConfig)
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            own.attention(config.head_dim),
            own.choice.by_sigmoid(config.n_experts, config.top_k),
            has_correction=True,
            shared_width=own.shared_width,
            dense_width=own.dense_width,
            has_balance=False,
        )


FAMILY: Family = DeepseekV3()
