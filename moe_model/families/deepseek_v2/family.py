"""DeepSeek-V2: latent attention, shared experts, experts chosen by softmax, in groups or among all.

Source: DeepSeek-V2 (2024).
"""

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec
from moe_model.families.base import Family
from moe_model.families.deepseek import DeepseekConfig
from moe_model.families.deepseek_v2.hugging_face import DeepseekV2Folder
from moe_model.layers.specs import NormSpec


class DeepseekV2(DecoderFamily):
    """The family of `DeepseekV2ForCausalLM`."""

    name = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"
    own_config = DeepseekConfig
    hugging_face = DeepseekV2Folder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Raises ConfigError naming the key of a size or choice that this family cannot have."""
        own = config.own
        assert isinstance(own, DeepseekConfig)
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            own.attention(config.head_dim, is_rounded_once=True),
            own.choice.by_softmax(config.n_experts, config.top_k),
            shared_width=own.shared_width,
            dense_width=own.dense_width,
            has_balance=False,
        )


FAMILY: Family = DeepseekV2()
