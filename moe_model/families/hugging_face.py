"""How a family reads a Hugging Face folder of its authors: the keys of its config, the names of its tensors.

Files are read elsewhere. A family takes the keys it knows, one by one; a key that it did not take and that is
not known to be without meaning for inference is refused by name, since it may change what the model computes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from moe_model.checks import check_count
from moe_model.config import LIMITS, ModelConfig
from moe_model.errors import ConfigError
from moe_model.families.rope import RopeKeys, number
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
        # A tool for training leaves its marks in what it saves.
        *("unsloth_fixed", "unsloth_version"),
    }
)
# Said of every model when the library writes a config in full; another value is of another kind of model.
_OF_NO_DECODER = ("is_encoder_decoder", "is_decoder", "add_cross_attention", "tie_encoder_decoder")
_LARGEST = max(LIMITS.values())
_Item = TypeVar("_Item", int, str)

Part = Literal["all", "first_half", "second_half", "even", "odd"]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where a tensor of ours is in a folder: the tensor `name`, or of a stacked one, whose first dimension
    counts experts, the `item`; `is_transposed`: it is stored inputs x outputs; `part`: of its outputs, the
    first or second half, or every other one from the first or the second on."""

    name: str
    item: int | None = None
    part: Part = "all"
    is_transposed: bool = False


# Our name of a tensor -> where it may be; the first place that a folder has counts.
Sources = Mapping[str, tuple[TensorSource, ...]]


class HuggingFaceModel(Protocol):
    """What a family says of such folders."""

    def read_config(self, keys: "ConfigKeys") -> ModelConfig:
        """Raises ConfigError naming the key."""

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """The keys of a config.json that `read_config` reads as `config`."""

    def shared_sources(self, config: ModelConfig, names: Iterable[str]) -> Sources:
        """Of the tensors of the shared part, `names`."""

    def expert_sources(self, config: ModelConfig, layer: int, expert: int) -> Sources:
        """Of the tensors of one expert."""


class ConfigKeys:
    """The parsed config.json. `null` is the same as absent, but for `is_null`. Errors are ConfigError."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._taken: set[str] = set()

    @property
    def model_type(self) -> str:
        """Of a family with several."""
        value = self._data.get("model_type")
        return value if isinstance(value, str) else ""

    def has(self, name: str) -> bool:
        """Whether there is a value other than null. The key is not taken by that."""
        return self._data.get(name) is not None

    def is_null(self, name: str) -> bool:
        return name in self._data and self._data[name] is None

    def count(self, name: str, default: int, *, least: int = 1) -> int:
        """A whole number that is `least` at least."""
        value = self._take(name)
        if value is None:
            return default
        if type(value) is not int or not least <= value < 1:
            check_count(name, value, _LARGEST)
        assert isinstance(value, int)
        return value

    def count_of(self, names: tuple[str, ...], default: int) -> int:
        """Of a key that has several names: those that are there must agree."""
        found = {name: self.count(name, default) for name in names if self.has(name)}
        if len(set(found.values())) > 1:
            raise ConfigError(" and ".join(f"{name}: {value}" for name, value in found.items()) + " differ")
        return next(iter(found.values()), default)

    def number(self, name: str, default: float) -> float:
        """Above 0."""
        return number(name, self._take(name), default)

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._take(name)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{name}: expected true or false, got {type(value).__name__}")
        return default if value is None else value

    def items(self, name: str, kind: type[_Item]) -> tuple[_Item, ...] | None:
        """A list of whole numbers or of texts; None where there is none."""
        value = self._take(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            what = "whole numbers" if kind is int else "texts"
            raise ConfigError(f"{name}: expected a list of {what}, got {brief(value)}")
        return tuple(value)

    def one_of(self, name: str, *possible: str) -> str:
        """The first of these where there is none."""
        self.expect(name, *possible)
        return str(self._data[name]) if self.has(name) else possible[0]

    def expect(self, name: str, *possible: object) -> None:
        """Refuses another value than these, one that would ask for what is not built."""
        value = self._take(name)
        if value is not None and not any(value == each and type(value) is type(each) for each in possible):
            raise ConfigError(f"{name}: {brief(value)} is not supported")

    def ignore(self, *names: str) -> None:
        """Keys that are known to say nothing about what this family computes, whatever their values."""
        self._taken.update(names)

    def expect_code(self, *modules: str) -> None:
        """Refuses an `auto_map` that names code of other modules than these, in which the authors published
        what this family computes before the libraries knew it. The code is never run."""
        found = self._take("auto_map")
        if found is None:
            return
        classes = found.values() if isinstance(found, Mapping) else [found]
        for name in classes:
            if not isinstance(name, str) or name.partition(".")[0] not in modules:
                raise ConfigError(f"auto_map: {brief(name)} is code that is not known, and is not run")

    def rope(
        self,
        theta: float,
        max_positions: int,
        *,
        partial: float | None = None,
        absent: Mapping[str, Any] | None = None,
    ) -> RopeKeys:
        """The keys of rotary positions, in either spelling: all in `rope_parameters`, or `rope_theta` outside
        with a `rope_scaling`, which counts where both are there and it is not empty.

        `theta` is the default. `partial`: the part of a head that turns where the config does not say, for
        families that read such a key. `absent` counts where there is neither object.
        """
        outside, scaling, parameters = map(self._take, ("rope_theta", "rope_scaling", "rope_parameters"))
        where, rope = ("rope_scaling", scaling) if scaling else ("rope_parameters", parameters)
        if rope is None:
            rope = absent or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{where}: expected an object, got {type(rope).__name__}")
        if partial is not None and rope.get("partial_rotary_factor") is None:
            partial = self.number("partial_rotary_factor", partial)
        return RopeKeys(rope, where, number("rope_theta", outside, theta), max_positions, partial)

    def finish(self) -> None:
        """Raises ConfigError for a key that was not taken and may mean something."""
        for name in _OF_NO_DECODER:
            self.expect(name, False)
        for name, value in self._data.items():
            if value is not None and name not in self._taken | _WITHOUT_MEANING:
                raise ConfigError(f"unknown key {name[:80]!r}")

    def _take(self, name: str) -> object:
        self._taken.add(name)
        return self._data.get(name)
