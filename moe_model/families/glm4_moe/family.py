"""GLM-4.5: grouped-query attention of which half of each head turns, shared experts, corrected sigmoids.

Source: GLM-4.5 (2025).
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.errors import ConfigError
from moe_model.families.base import Family
from moe_model.families.glm4_moe.config import Glm4MoeConfig
from moe_model.families.glm4_moe.hugging_face import Glm4MoeFolder
from moe_model.layers.specs import NormSpec, RotarySpec


class Glm4Moe(DecoderFamily):
    """The family of `Glm4MoeForCausalLM`."""

    name = "glm4_moe"
    architecture = "Glm4MoeForCausalLM"
    own_config = Glm4MoeConfig
    hugging_face = Glm4MoeFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Raises ConfigError naming the key of a size or choice that this family cannot have."""
        own = config.own
        assert isinstance(own, Glm4MoeConfig)
        if own.turning_width > config.head_dim:
            raise ConfigError(f"turning_width: {own.turning_width} is more than head_dim {config.head_dim}")
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            GroupedAttention(
                1 / sqrt(config.head_dim),
                RotarySpec(own.turning_width, own.rope_theta, scaling=own.rope_scaling),
                query_key_norm="head" if own.has_head_norms else "none",
                has_qkv_biases=own.has_qkv_biases,
            ),
            own.choice.by_sigmoid(config.n_experts, config.top_k),
            has_correction=True,
            shared_width=own.shared_width,
            dense_width=own.dense_width,
            has_balance=False,
        )


FAMILY: Family = Glm4Moe()
