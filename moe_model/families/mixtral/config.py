"""What Mixtral has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count
from moe_model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class MixtralConfig(DecoderConfig):
    """`sliding_window` is of every layer; None: a token sees all before it."""

    sliding_window: int | None = None

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        if self.sliding_window is not None:
            check_count("sliding_window", self.sliding_window, 1 << 30)
