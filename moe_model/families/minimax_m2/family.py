"""MiniMax-M2: queries and keys normed as a whole, part of each head turns, experts chosen by sigmoids.

Source: MiniMax, "MiniMax-M2", 2025.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.errors import ConfigError
from moe_model.families.base import Family
from moe_model.families.minimax_m2.config import MiniMaxConfig
from moe_model.families.minimax_m2.hugging_face import MiniMaxFolder
from moe_model.layers.router_rules import TopKOfSigmoid
from moe_model.layers.specs import NormSpec, RotarySpec


class MiniMax(DecoderFamily):
    """The family of `MiniMaxM2ForCausalLM`."""

    name = "minimax_m2"
    architecture = "MiniMaxM2ForCausalLM"
    own_config = MiniMaxConfig
    hugging_face = MiniMaxFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Router: sigmoids, a correction for the choice alone, weights that add up to 1."""
        own = config.own
        assert isinstance(own, MiniMaxConfig)
        rotary_dim = config.head_dim if own.rotary_dim is None else own.rotary_dim
        if rotary_dim > config.head_dim:
            raise ConfigError(f"rotary_dim: {rotary_dim} is more than head_dim {config.head_dim}")
        rotary = RotarySpec(rotary_dim, own.rope_theta, scaling=own.rope_scaling)
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            GroupedAttention(1 / sqrt(config.head_dim), rotary, query_key_norm="whole"),
            TopKOfSigmoid(),
            has_correction=True,
        )


FAMILY: Family = MiniMax()
