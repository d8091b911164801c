"""What MiniMax-M2 has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count
from moe_model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class MiniMaxConfig(DecoderConfig):
    """Of each head the first `rotary_dim` values turn; None: all of them."""

    rope_theta: float = 5e6
    rotary_dim: int | None = None

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        if self.rotary_dim is not None:
            check_count("rotary_dim", self.rotary_dim, 1 << 12)
