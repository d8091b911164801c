"""The keys of rotary positions in a Hugging Face config.json, whichever spelling they came in.

Formulas and defaults as in the sources that `layers.specs.RotaryScaling` names.
"""

import math
from collections.abc import Mapping
from typing import Any

from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief
from moe_model.layers.specs import RotaryScaling


class RopeKeys:
    """One object of rotary keys. Errors are ConfigError and name the object and the key."""

    def __init__(
        self,
        data: Mapping[str, Any],
        where: str,
        theta: float,
        max_positions: int,
        partial: float | None = None,
    ) -> None:
        """`theta` and `partial` count where the object has none; with `partial` None it must have none.
        `max_positions` is the model's."""
        self._data, self._where, self._max_positions = data, where, max_positions
        self._taken = {"rope_theta", "rope_type", "type", "original_max_position_embeddings"}
        self.theta = self.number("rope_theta", theta)
        name = "type" if data.get("rope_type") is None else "rope_type"
        kind = data.get(name)
        self.kind: str = "default" if kind is None else kind
        makers = {
            "default": self._none,
            # Within the length that the config promises, frequencies are those without scaling.
            "dynamic": self._dynamic,
            "linear": self._linear,
            "llama3": self._llama3,
            "yarn": self._yarn,
        }
        if not isinstance(self.kind, str) or self.kind not in makers:
            raise ConfigError(f"{where}: {name} {brief(self.kind)} is not supported")
        self.partial = 1.0 if partial is None else self.number("partial_rotary_factor", partial)
        self.mscale_all_dim = 0.0
        self.scaling: RotaryScaling | None = makers[self.kind]()
        if unknown := {name for name, value in data.items() if value is not None} - self._taken:
            raise ConfigError(f"{where}: unknown key {brief(min(unknown))}")

    def number(self, name: str, default: float) -> float:
        """Above 0."""
        self._taken.add(name)
        return number(f"{self._where}: {name}", self._data.get(name), default)

    @property
    def yarn_scale(self) -> float:
        """What yarn multiplies the scale of latent attention by: m(mscale_all_dim)², 1 without yarn."""
        if self.scaling is None or self.scaling.kind != "yarn" or not self.mscale_all_dim:
            return 1.0
        return yarn_magnitude(self.scaling.factor, self.mscale_all_dim) ** 2

    def _none(self) -> None:
        return None

    def _dynamic(self) -> None:
        self.number("factor", 1.0)

    def _linear(self) -> RotaryScaling:
        return RotaryScaling("linear", self._factor())

    def _llama3(self) -> RotaryScaling:
        low, high = self.number("low_freq_factor", 1.0), self.number("high_freq_factor", 4.0)
        return RotaryScaling("llama3", self._factor(), self._original(), low, high)

    def _yarn(self) -> RotaryScaling:
        original = self._original()
        factor = self.number("factor", self._max_positions / original)
        truncate = self._data.get("truncate", True)
        self._taken |= {"truncate", "mscale"}
        high, low = self.number("beta_fast", 32.0), self.number("beta_slow", 1.0)
        given = self.number("attention_factor", 0.0) or None
        self.mscale_all_dim = self._optional("mscale_all_dim") or 0.0
        mscale = self._optional("mscale")
        if given is None and mscale and self.mscale_all_dim:
            given = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, self.mscale_all_dim)
        attention_factor = yarn_magnitude(factor, 1.0) if given is None else given
        return RotaryScaling("yarn", factor, original, low, high, truncate, attention_factor)

    def _factor(self) -> float:
        if self._data.get("factor") is None:
            raise ConfigError(f"{self._where}: factor is missing")
        return self.number("factor", 1.0)

    def _original(self) -> int:
        return int(self.number("original_max_position_embeddings", self._max_positions))

    def _optional(self, name: str) -> float | None:
        """0 stands for nothing, as an absent key does."""
        self._taken.add(name)
        value = self._data.get(name)
        return None if value is None or value == 0 else number(f"{self._where}: {name}", value, 1.0)


def rope_parameters(theta: float, scaling: RotaryScaling | None) -> dict[str, Any]:
    """The object that RopeKeys reads as these."""
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    found: dict[str, Any] = {"rope_type": scaling.kind, "rope_theta": theta, "factor": scaling.factor}
    if scaling.kind == "linear":
        return found
    found["original_max_position_embeddings"] = scaling.original
    if scaling.kind == "llama3":
        return found | {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
    return found | {
        "beta_fast": scaling.high,
        "beta_slow": scaling.low,
        "truncate": scaling.truncate,
        "attention_factor": scaling.attention_factor,
    }


def yarn_magnitude(factor: float, mscale: float) -> float:
    """m(s) = 0.1 · s · ln(factor) + 1."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def mscale_of(factor: float, yarn_scale: float) -> float:
    """The mscale_all_dim of which RopeKeys makes this scale: the shortest number that does, as people write
    it."""
    mscale = (math.sqrt(yarn_scale) - 1.0) / (0.1 * math.log(factor))
    shorter = (round(mscale, digits) for digits in range(16))
    return next((each for each in shorter if yarn_magnitude(factor, each) ** 2 == yarn_scale), mscale)


def number(name: str, value: object, default: float) -> float:
    """Above 0. Raises ConfigError naming the key."""
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise ConfigError(f"{name}: {brief(value)} is not a number above 0")
    return float(value)
