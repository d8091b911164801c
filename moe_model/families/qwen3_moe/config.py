"""What Qwen3-MoE has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count, check_flag
from moe_model.config import LIMITS
from moe_model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Qwen3MoeConfig(DecoderConfig):
    """`norm_topk_prob`: the weights of a row's experts add up to 1. `attention_bias`: all four products of
    attention have biases. `dense_width` is of dense layers, `sliding_window` of every layer; None: none."""

    norm_topk_prob: bool = False
    attention_bias: bool = False
    dense_width: int = 6144
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_flag("norm_topk_prob", self.norm_topk_prob)
        check_flag("attention_bias", self.attention_bias)
        check_count("dense_width", self.dense_width, LIMITS["d_ff"])
        if self.sliding_window is not None:
            check_count("sliding_window", self.sliding_window, 1 << 30)
