"""How a model generates where a request leaves it open. Needs no torch, so that fronts can read it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from moe_model.checkpoint.json_values import check_keys, is_int, is_number
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

MAX_EOS_TOKENS = 64
MAX_TEMPERATURE = 2.0
KEYS = {"temperature", "top_k", "top_p", "bos_token_id", "eos_token_ids", "pad_token_id"}


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How the model's authors sample, and which token ids begin and end a text."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def check(self, vocab_size: int) -> None:
        """Raises ConfigError naming the field that is out of range."""
        if not is_number(self.temperature) or not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ConfigError(f"temperature: {brief(self.temperature)} is not in [0, {MAX_TEMPERATURE:g}]")
        if not is_int(self.top_k) or not 0 <= self.top_k <= vocab_size:
            raise ConfigError(f"top_k: {brief(self.top_k)} is not in [0, {vocab_size}]")
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {brief(self.top_p)} is not in (0, 1]")
        if len(self.eos_token_ids) > MAX_EOS_TOKENS:
            raise ConfigError(f"eos_token_ids: more than {MAX_EOS_TOKENS} ids")
        single = {"bos_token_id": self.bos_token_id, "pad_token_id": self.pad_token_id}
        ids = [(name, value) for name, value in single.items() if value is not None]
        for name, value in [*ids, *(("eos_token_ids", value) for value in self.eos_token_ids)]:
            if not is_int(value) or not 0 <= value < vocab_size:
                raise ConfigError(f"{name}: {brief(value)} is not in [0, {vocab_size})")

    @classmethod
    def from_dict(cls, data: object) -> Self:
        """Builds from parsed JSON, unchecked ranges. Raises ConfigError."""
        check_keys(data, KEYS)
        assert isinstance(data, dict)
        eos = data["eos_token_ids"]
        if not isinstance(eos, list):
            raise ConfigError("eos_token_ids: expected a list")
        return cls(**(data | {"eos_token_ids": tuple(eos)}))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"eos_token_ids": list(self.eos_token_ids)}


def with_given(
    defaults: GenerationDefaults, given: Mapping[str, Any], vocab_size: int, where: str
) -> tuple[GenerationDefaults, list[str]]:
    """The defaults with what was given of sampling and is in range; notes on the others."""
    notes = []
    for name in ("temperature", "top_k", "top_p"):
        if given.get(name) is None:
            continue
        candidate = replace(defaults, **{name: given[name]})
        try:
            candidate.check(vocab_size)
        except ConfigError as error:
            notes.append(f"{where}: {error}; {getattr(defaults, name)} is used")
        else:
            defaults = candidate
    return defaults, notes
