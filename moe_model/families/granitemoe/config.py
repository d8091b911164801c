"""What Granite's mixtures of experts have beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count, check_flag, check_number
from moe_model.config import LIMITS
from moe_model.decoder.config import DecoderConfig

MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")


@dataclass(frozen=True, slots=True)
class GraniteMoeConfig(DecoderConfig):
    """`attention_multiplier` is the scale of attention; what attention and feed-forward add is multiplied by
    `residual_multiplier`, logits are divided by `logits_scaling`. `attention_bias`: all four products of
    attention have biases. `shared_width` None: no shared expert."""

    attention_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    attention_bias: bool = False
    shared_width: int | None = None

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        for name in MULTIPLIERS:
            check_number(name, getattr(self, name), 1e-6, 1e6)
        check_flag("attention_bias", self.attention_bias)
        if self.shared_width is not None:
            check_count("shared_width", self.shared_width, LIMITS["d_ff"])
