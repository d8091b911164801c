"""How a model generates where a request leaves it open. Needs no torch, so that fronts can read it."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Self

from moe_model.checkpoint.json_values import check_keys, is_int, is_number
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

MAX_EOS_TOKENS = 64
MAX_TEMPERATURE = 2.0
MAX_REPETITION_PENALTY = 2.0
KEYS = {"temperature", "top_k", "top_p", "bos_token_id", "eos_token_ids", "pad_token_id"}
# Keys of a later day: a manifest has them where they are not neutral.
LATER_KEYS = {"min_p": 0.0, "repetition_penalty": 1.0}
NEUTRAL: Mapping[str, float] = MappingProxyType({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | LATER_KEYS)


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """How the model's authors sample, and which token ids begin and end a text."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def check(self, vocab_size: int) -> None:
        """Raises ConfigError naming the field that is out of range."""
        if not is_number(self.temperature) or not 0 <= self.temperature <= MAX_TEMPERATURE:
            raise ConfigError(f"temperature: {brief(self.temperature)} is not in [0, {MAX_TEMPERATURE:g}]")
        if not is_int(self.top_k) or not 0 <= self.top_k <= vocab_size:
            raise ConfigError(f"top_k: {brief(self.top_k)} is not in [0, {vocab_size}]")
        if not is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p: {brief(self.top_p)} is not in (0, 1]")
        if not is_number(self.min_p) or not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p: {brief(self.min_p)} is not in [0, 1]")
        penalty, most = self.repetition_penalty, MAX_REPETITION_PENALTY
        if not is_number(penalty) or not 0 < penalty <= most:
            raise ConfigError(f"repetition_penalty: {brief(penalty)} is not in (0, {most:g}]")
        self._check_ids(vocab_size)

    def neutral(self) -> "GenerationDefaults":
        """Without what is said of sampling."""
        return replace(self, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)

    def _check_ids(self, vocab_size: int) -> None:
        if len(self.eos_token_ids) > MAX_EOS_TOKENS:
            raise ConfigError(f"eos_token_ids: more than {MAX_EOS_TOKENS} ids")
        single = {"bos_token_id": self.bos_token_id, "pad_token_id": self.pad_token_id}
        ids = [(name, value) for name, value in single.items() if value is not None]
        for name, value in [*ids, *(("eos_token_ids", value) for value in self.eos_token_ids)]:
            if not is_int(value) or not 0 <= value < vocab_size:
                raise ConfigError(f"{name}: {brief(value)} is not in [0, {vocab_size})")

    @classmethod
    def from_dict(cls, data: object, version: int = 2) -> Self:
        """Builds from parsed JSON of a manifest's version, unchecked ranges. Raises ConfigError."""
        later = LATER_KEYS.keys() & data.keys() if isinstance(data, dict) and version > 1 else set()
        check_keys(data, KEYS | later)
        assert isinstance(data, dict)
        eos = data["eos_token_ids"]
        if not isinstance(eos, list):
            raise ConfigError("eos_token_ids: expected a list")
        return cls(**(data | {"eos_token_ids": tuple(eos)}))

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self) | {"eos_token_ids": list(self.eos_token_ids)}
        return {
            key: value for key, value in data.items() if key not in LATER_KEYS or value != LATER_KEYS[key]
        }


def with_given(
    defaults: GenerationDefaults,
    given: Mapping[str, Any],
    vocab_size: int,
    where: str,
    names: Iterable[str] = ("temperature", "top_k", "top_p"),
) -> tuple[GenerationDefaults, list[str]]:
    """The defaults with what was given of sampling and is in range; notes on the others."""
    notes = []
    for name in names:
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
