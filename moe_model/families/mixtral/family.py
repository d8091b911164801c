"""Mixtral: RMSNorm, rotary positions, grouped-query attention, SwiGLU experts without biases.

Source: Jiang et al., "Mixtral of Experts", 2024.
"""

from math import sqrt

from moe_model.config import ModelConfig
from moe_model.decoder.family import DecoderFamily
from moe_model.decoder.spec import DecoderSpec, GroupedAttention
from moe_model.families.base import Family
from moe_model.families.mixtral.config import MixtralConfig
from moe_model.families.mixtral.hugging_face import MixtralFolder
from moe_model.layers.router_rules import SoftmaxOfTopK
from moe_model.layers.specs import NormSpec, RotarySpec


class Mixtral(DecoderFamily):
    """The family of `MixtralForCausalLM`."""

    name = "mixtral"
    architecture = "MixtralForCausalLM"
    own_config = MixtralConfig
    hugging_face = MixtralFolder()

    def spec(self, config: ModelConfig) -> DecoderSpec:
        """Router: softmax, the K largest, divided by their sum; the same as softmax over the K largest."""
        own = config.own
        assert isinstance(own, MixtralConfig)
        rotary = RotarySpec(config.head_dim, own.rope_theta, scaling=own.rope_scaling)
        windows = (own.sliding_window,) * config.n_layers if own.sliding_window else ()
        return DecoderSpec(
            NormSpec("rms_norm", own.norm_eps),
            GroupedAttention(1 / sqrt(config.head_dim), rotary, windows=windows),
            SoftmaxOfTopK(),
        )


FAMILY: Family = Mixtral()
