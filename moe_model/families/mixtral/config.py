"""What Mixtral has beside the common sizes."""

from dataclasses import dataclass

from moe_model.config import FamilyConfig, check_number


@dataclass(frozen=True, slots=True)
class MixtralConfig(FamilyConfig):
    """`norm_eps` is of every RMSNorm; `rope_theta` the base of the rotary frequencies. The defaults are
    those of the published models."""

    norm_eps: float = 1e-5
    rope_theta: float = 1e6

    def __post_init__(self) -> None:
        check_number("norm_eps", self.norm_eps, 1e-12, 1.0)
        check_number("rope_theta", self.rope_theta, 1.0, 1e12)
