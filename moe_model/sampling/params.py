"""What a caller may ask of the drawing of tokens. Needs no torch: it travels in messages."""

import math
from dataclasses import dataclass

from moe_model.errors import ConfigError

MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request draws its tokens.

    temperature 0 is greedy and ignores the filters; top_k 0, top_p 1 and min_p 0 are off.
    The filters act in this order on logits / temperature: top_k, top_p, min_p.
    `logit_bias` holds (token id, bias); penalties act on what was generated, `repetition_penalty` on the
    prompt as well.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    @property
    def is_penalized(self) -> bool:
        """Whether the tokens so far matter to the next one."""
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature: {self.temperature} is not a number >= 0")
        if self.top_k < 0:
            raise ConfigError(f"top_k: {self.top_k} is negative")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {self.top_p} is not in (0, 1]")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p: {self.min_p} is not in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name}: {getattr(self, name)} is not a number")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ConfigError(f"repetition_penalty: {self.repetition_penalty} is not a number > 0")
        if not all(token_id >= 0 and math.isfinite(bias) for token_id, bias in self.logit_bias):
            raise ConfigError("logit_bias: has a negative token id or a bias that is no number")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"seed: {self.seed} is not in [0, 2**64)")
