"""How a family reads a Hugging Face folder of its authors: the keys of its config, the names of its tensors.

Files are read elsewhere. A family takes the keys it knows, one by one; a key that it did not take and that is
not known to be without meaning for inference is refused by name, since it may change what the model computes.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from moe_model.config import LIMITS, ModelConfig, check_count
from moe_model.errors import ConfigError
from moe_model.files.strict_json import brief

# Training's, the library's own, and what is read elsewhere (tokens, dtype).
_WITHOUT_MEANING = frozenset(
    {
        *("_attn_implementation", "_experts_implementation", "_name_or_path", "architectures"),
        *("chunk_size_feed_forward", "id2label", "label2id", "model_type", "output_attentions"),
        *("output_hidden_states", "output_router_logits", "problem_type", "return_dict"),
        *("torchscript", "transformers_version", "use_cache", "use_bfloat16"),
        *("attention_dropout", "initializer_range", "router_aux_loss_coef", "router_jitter_noise"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"),
    }
)
_ROPE_KEYS = frozenset({"rope_theta", "rope_type", "type"})
_LARGEST = max(LIMITS.values())


class HuggingFaceModel(Protocol):
    """What a family says of such folders."""

    def read_config(self, keys: "ConfigKeys") -> ModelConfig:
        """Raises ConfigError naming the key."""

    def shared_names(self, config: ModelConfig) -> Mapping[str, str]:
        """Our name of every tensor of the shared part -> theirs."""

    def expert_names(self, layer: int, expert: int) -> Mapping[str, str]:
        """Our name of every tensor of one expert -> theirs."""


class ConfigKeys:
    """The parsed config.json. `null` is the same as absent, but for `is_null`. Errors are ConfigError."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._taken: set[str] = set()

    def count(self, name: str, default: int) -> int:
        """A number that is 1 at least."""
        value = self._take(name)
        if value is None:
            return default
        check_count(name, value, _LARGEST)
        assert isinstance(value, int)
        return value

    def number(self, name: str, default: float) -> float:
        return _number(name, self._take(name), default)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._take(name)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, got {type(value).__name__}")
        return default if value is None else value

    def is_null(self, name: str) -> bool:
        return name in self._data and self._data[name] is None

    def expect(self, name: str, *possible: object) -> None:
        """Refuses another value than these, one that would ask for what is not built."""
        value = self._take(name)
        if value is not None and value not in possible:
            raise ConfigError(f"{name}: {brief(value)} is not supported")

    def rope_theta(self, default: float) -> float:
        """The base of rotary positions without scaling, in either spelling: all in `rope_parameters`, or
        `rope_theta` outside with a `rope_scaling`, which counts where both are there and it is not empty."""
        outside, scaling, parameters = map(self._take, ("rope_theta", "rope_scaling", "rope_parameters"))
        where, rope = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
        if rope is None:
            return _number("rope_theta", outside, default)
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{where}: expected an object, got {type(rope).__name__}")
        for key in ("rope_type", "type"):
            if rope.get(key) not in (None, "default"):
                raise ConfigError(f"{where}: {key} {brief(rope[key])} is not supported")
        if unknown := rope.keys() - _ROPE_KEYS:
            raise ConfigError(f"{where}: unknown key {brief(min(unknown))}")
        return _number(
            f"{where}: rope_theta", rope.get("rope_theta"), _number("rope_theta", outside, default)
        )

    def finish(self) -> None:
        """Raises ConfigError for a key that was not taken and may mean something."""
        for name, value in self._data.items():
            if value is not None and name not in self._taken | _WITHOUT_MEANING:
                raise ConfigError(f"unknown key {name[:80]!r}")

    def _take(self, name: str) -> object:
        self._taken.add(name)
        return self._data.get(name)


def _number(name: str, value: object, default: float) -> float:
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise ConfigError(f"{name}: {brief(value)} is not a number above 0")
    return float(value)
