"""What the config of every such family has."""

from dataclasses import dataclass

from moe_model.checks import check_number
from moe_model.config import FamilyConfig
from moe_model.errors import ConfigError
from moe_model.layers.specs import RotaryScaling


@dataclass(frozen=True, slots=True)
class DecoderConfig(FamilyConfig):
    """`norm_eps` is of every RMSNorm; `rope_theta` the base of the rotary frequencies, which `rope_scaling`
    changes. The defaults are Mixtral's."""

    norm_eps: float = 1e-5
    rope_theta: float = 1e6
    rope_scaling: RotaryScaling | None = None

    def __post_init__(self) -> None:
        check_number("norm_eps", self.norm_eps, 1e-12, 1.0)
        check_number("rope_theta", self.rope_theta, 1.0, 1e12)
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, RotaryScaling):
            raise ConfigError("rope_scaling: expected an object")
