"""ModelConfig: the shape of a model. Frozen, validated once, unknown keys are errors."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from moe_model.errors import ConfigError

# Far above any model that exists and far below what would exhaust memory by a count alone.
LIMITS: Mapping[str, int] = {
    "d_model": 1 << 16,
    "n_heads": 1 << 12,
    "n_layers": 1 << 10,
    "d_ff": 1 << 18,
    "n_experts": 1 << 12,
    "top_k": 1 << 12,
    "vocab_size": 1 << 22,
    "max_seq_len": 1 << 22,
}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one mixture-of-experts decoder. The defaults are ModularForge's own."""

    family: str = "modularforge"
    d_model: int = 512
    n_heads: int = 8
    n_layers: int = 4
    d_ff: int = 2048
    n_experts: int = 5
    top_k: int = 2
    vocab_size: int = 16384
    max_seq_len: int = 512
    tie_embedding: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.family, str):
            raise ConfigError(f"family: expected a string, got {type(self.family).__name__}")
        for name, limit in LIMITS.items():
            _check_count(name, getattr(self, name), limit)
        if not isinstance(self.tie_embedding, bool):
            raise ConfigError(
                f"tie_embedding: expected true or false, got {type(self.tie_embedding).__name__}"
            )
        if self.top_k > self.n_experts:
            raise ConfigError(f"top_k: {self.top_k} is more than n_experts {self.n_experts}")
        if self.d_model % self.n_heads:
            raise ConfigError(f"n_heads: {self.n_heads} does not divide d_model {self.d_model}")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @classmethod
    def from_dict(cls, data: object, *, where: str = "model config") -> Self:
        """Builds a config from parsed JSON. Raises ConfigError naming the key."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
        known = {field.name for field in fields(cls)}
        for key in data:
            if key not in known:
                raise ConfigError(f"{where}: unknown key {str(key)[:80]!r}")
        missing = known - set(data)
        if missing:
            raise ConfigError(f"{where}: missing key {min(missing)!r}")
        try:
            return cls(**data)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _check_count(name: str, value: object, limit: int) -> None:
    # A value is shown only once it is known to be small: it may come from a hostile file.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigError(f"{name}: expected a whole number, got {type(value).__name__}")
    if not 1 <= value <= limit:
        shown = value if abs(value) < 1 << 64 else "a number of more than 64 bits"
        raise ConfigError(f"{name}: {shown} is not in [1, {limit}]")
