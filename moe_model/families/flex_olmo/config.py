"""What FlexOlmo has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_flag
from moe_model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class FlexOlmoConfig(DecoderConfig):
    """`norm_topk_prob`: the weights of a row's experts add up to 1. `attention_bias`: all four products of
    attention have biases."""

    norm_topk_prob: bool = False
    attention_bias: bool = False

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_flag("norm_topk_prob", self.norm_topk_prob)
        check_flag("attention_bias", self.attention_bias)
