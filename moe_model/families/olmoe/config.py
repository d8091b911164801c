"""What OLMoE has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_flag, check_number
from moe_model.decoder.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class OlmoeConfig(DecoderConfig):
    """`norm_topk_prob`: the weights of a row's experts add up to 1. `attention_bias`: all four products of
    attention have biases. Queries, keys and values are clamped to ±`clip_qkv`, None: are not."""

    norm_topk_prob: bool = False
    attention_bias: bool = False
    clip_qkv: float | None = None

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_flag("norm_topk_prob", self.norm_topk_prob)
        check_flag("attention_bias", self.attention_bias)
        if self.clip_qkv is not None:
            check_number("clip_qkv", self.clip_qkv, 1e-6, 1e9)
