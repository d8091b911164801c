"""What Qwen2-MoE has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count, check_flag
from moe_model.config import LIMITS
from moe_model.decoder.config import DecoderConfig
from moe_model.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Qwen2MoeConfig(DecoderConfig):
    """`norm_topk_prob`: the weights of a row's experts add up to 1. `qkv_bias`: queries, keys and values have
    biases. `dense_width` is of dense layers, `shared_width` of the shared expert. `sliding_window` is of the
    `window_layers`."""

    norm_topk_prob: bool = False
    qkv_bias: bool = True
    dense_width: int = 5632
    shared_width: int = 5632
    sliding_window: int | None = None
    window_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        check_flag("norm_topk_prob", self.norm_topk_prob)
        check_flag("qkv_bias", self.qkv_bias)
        check_count("dense_width", self.dense_width, LIMITS["d_ff"])
        check_count("shared_width", self.shared_width, LIMITS["d_ff"])
        if not all(type(layer) is int and layer >= 0 for layer in self.window_layers):
            raise ConfigError("window_layers: are not numbers of layers")
        if (self.sliding_window is None) != (not self.window_layers):
            raise ConfigError("sliding_window: goes with window_layers")
        if self.sliding_window is not None:
            check_count("sliding_window", self.sliding_window, 1 << 30)

    def window_of(self, layer: int) -> int | None:
        return self.sliding_window if layer in self.window_layers else None
