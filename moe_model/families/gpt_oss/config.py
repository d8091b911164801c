"""What gpt-oss has beside the common sizes."""

from dataclasses import dataclass

from moe_model.checks import check_count, check_number
from moe_model.decoder.config import DecoderConfig
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True, slots=True)
class GptOssConfig(DecoderConfig):
    """`layer_types` says of each layer whether a token sees `sliding_window` tokens, itself included, or all.
    `attention_bias`: the four products of attention have biases. `swiglu_limit` and `swiglu_alpha` are those
    of `SwigluLimit`."""

    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    attention_bias: bool = True
    swiglu_limit: float = 7.0
    swiglu_alpha: float = 1.702

    def __post_init__(self) -> None:
        # Not super(): a dataclass with slots is another class than the one that was written here.
        DecoderConfig.__post_init__(self)
        if self.sliding_window is not None:
            check_count("sliding_window", self.sliding_window, 1 << 30)
        for each in self.layer_types:
            if each not in (SLIDING, FULL):
                raise ConfigError(f"layer_types: {brief(each)} is neither {SLIDING} nor {FULL}")
        if not isinstance(self.attention_bias, bool):
            raise ConfigError("attention_bias: expected true or false")
        check_number("swiglu_limit", self.swiglu_limit, 1e-3, 1e9)
        check_number("swiglu_alpha", self.swiglu_alpha, 1e-3, 1e3)

    def windows(self, n_layers: int) -> tuple[int | None, ...]:
        """By layer. Raises ConfigError for another number of layers than the types are of."""
        if len(self.layer_types) != n_layers:
            raise ConfigError(f"layer_types: {len(self.layer_types)} for {n_layers} layers")
        return tuple(self.sliding_window if each == SLIDING else None for each in self.layer_types)
