"""ModelConfig: the sizes that all models have, and what one family alone has. Frozen, checked once.

A key that is new since the first manifests has a default, so that an old manifest stays readable; an unknown
key is an error, since it may change what the model computes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from moe_model.checks import check_count, check_flag, check_known, from_json
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

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
# Those with a default that other sizes give.
_DERIVED: Mapping[str, int] = {"n_kv_heads": LIMITS["n_heads"], "head_dim": 1 << 12}


@dataclass(frozen=True, slots=True)
class FamilyConfig:
    """What only one family has. A family's own derives from this one; each field has a default and is
    checked when it is made, with a ConfigError that names the field. A field may be a dataclass or a tuple
    of numbers or texts, as `checks.from_json` makes them."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of one mixture-of-experts decoder. The defaults are ModularForge's own.

    `n_kv_heads` 0 stands for as many as `n_heads`, `head_dim` 0 for d_model / n_heads; a config that is made
    has the numbers themselves. `dense_layers` have a feed-forward network for all tokens in place of experts.
    `own` is of the family's own type.
    """

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
    n_kv_heads: int = 0
    head_dim: int = 0
    dense_layers: tuple[int, ...] = ()
    own: FamilyConfig = FamilyConfig()

    def __post_init__(self) -> None:
        if not isinstance(self.family, str):
            raise ConfigError(f"family: expected a string, got {type(self.family).__name__}")
        for name, limit in LIMITS.items():
            check_count(name, getattr(self, name), limit)
        check_flag("tie_embedding", self.tie_embedding)
        if self.top_k > self.n_experts:
            raise ConfigError(f"top_k: {self.top_k} is more than n_experts {self.n_experts}")
        self._derive()
        _check_dense_layers(self.dense_layers, self.n_layers)

    def _derive(self) -> None:
        # A frozen dataclass has no other way to give a field the value that follows from the rest.
        if self.head_dim == 0:
            if self.d_model % self.n_heads:
                raise ConfigError(f"n_heads: {self.n_heads} does not divide d_model {self.d_model}")
            object.__setattr__(self, "head_dim", self.d_model // self.n_heads)
        if self.n_kv_heads == 0:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        for name, limit in _DERIVED.items():
            check_count(name, getattr(self, name), max(limit, self.d_model))
        if self.n_heads % self.n_kv_heads:
            raise ConfigError(f"n_kv_heads: {self.n_kv_heads} does not divide n_heads {self.n_heads}")

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers that have experts."""
        return tuple(layer for layer in range(self.n_layers) if layer not in self.dense_layers)

    @property
    def num_expert_modules(self) -> int:
        """Experts of all layers together."""
        return (self.n_layers - len(self.dense_layers)) * self.n_experts

    def experts_of(self, layer: int) -> range:
        """The expert ids of a layer, none of a dense one."""
        return range(0 if layer in self.dense_layers else self.n_experts)

    @classmethod
    def from_dict(
        cls, data: object, *, where: str = "model config", own: type[FamilyConfig] = FamilyConfig
    ) -> Self:
        """Builds a config from parsed JSON; `own` is the family's type. Raises ConfigError naming the key."""
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
        check_known(data, {field.name for field in fields(cls)}, where)
        missing = MODEL_KEYS_OF_VERSION_1 - set(data)
        if missing:
            raise ConfigError(f"{where}: missing key {min(missing)!r}")
        try:
            for name, limit in _DERIVED.items():
                if name in data:
                    check_count(name, data[name], limit)
            return cls(**{**data, **_own_parts(data, own)})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it. Keys with a default that is right are left out."""
        data = {name: value for name, value in asdict(self).items() if name in MODEL_KEYS_OF_VERSION_1}
        if self.head_dim * self.n_heads != self.d_model:
            data["head_dim"] = self.head_dim
        if self.n_kv_heads != self.n_heads:
            data["n_kv_heads"] = self.n_kv_heads
        if self.dense_layers:
            data["dense_layers"] = list(self.dense_layers)
        own = {name: value for name, value in asdict(self.own).items() if value is not None}
        return data | ({"own": own} if own else {})


# What every manifest says, from the first version on.
MODEL_KEYS_OF_VERSION_1 = frozenset({*LIMITS, "family", "tie_embedding"})


def _own_parts(data: Mapping[str, Any], own: type[FamilyConfig]) -> dict[str, Any]:
    """The parts of a config that JSON has another type for."""
    section = data.get("own", {})
    dense = data.get("dense_layers", [])
    if not isinstance(dense, list):
        raise ConfigError(f"dense_layers: expected a list, got {type(dense).__name__}")
    return {"own": from_json(own, section, "own"), "dense_layers": tuple(dense)}


def _check_dense_layers(layers: tuple[int, ...], n_layers: int) -> None:
    if len(layers) >= n_layers:
        raise ConfigError(f"dense_layers: {len(layers)} of {n_layers} layers, one at least has experts")
    for layer in layers:
        if type(layer) is not int or not 0 <= layer < n_layers:
            raise ConfigError(f"dense_layers: {brief(layer)} is not in [0, {n_layers})")
    if list(layers) != sorted(set(layers)):
        raise ConfigError("dense_layers: are not in order, each of them once")
