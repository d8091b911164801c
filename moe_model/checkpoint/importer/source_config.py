"""ModularForge's configuration: which model it describes and how its authors sample from it."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from moe_model.checkpoint.generation_defaults import GenerationDefaults, with_given
from moe_model.config import MODEL_KEYS_OF_VERSION_1, ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import read_model_config as parse_model_config
from moe_model.files import strict_json, strict_yaml
from moe_model.files.strict_json import brief
from moe_model.files.whole_file import read_file

MAX_CONFIG_BYTES = 256 << 10
# Keys that merge merges of merges become a thousand times as many with a few dozen of these.
MAX_ALIASES = 8
# Training's own; they do not shape the model.
_IGNORED = frozenset({"dropout", "expert_dropout"})
_OURS_ONLY = frozenset({"family", "tie_embedding"})
_STRUCTURED = frozenset({"dense_layers", "own"})
_SIZES = MODEL_KEYS_OF_VERSION_1 - _OURS_ONLY


def read_config_file(path: Path) -> Mapping[str, Any]:
    """Parses a yaml or json file that holds one mapping. Raises CheckpointError."""
    data = bytes(read_file(path, max_size=MAX_CONFIG_BYTES, follow_links=True))
    try:
        if path.suffix == ".json":
            parsed = strict_json.loads(data)
        else:
            parsed = strict_yaml.loads(data.decode("utf-8"), MAX_ALIASES)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise CheckpointError(f"{path}: {error.problem or 'is not YAML'}{line}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from None
    if not isinstance(parsed, Mapping):
        raise CheckpointError(f"{path}: expected a mapping, got {type(parsed).__name__}")
    return parsed


def model_config(source: object, where: str) -> ModelConfig:
    """The model of a ModularForge configuration (`model:`); keys left out have ModularForge's defaults.

    Raises ConfigError naming the key.
    """
    if not isinstance(source, Mapping) or not isinstance(source.get("model"), Mapping):
        raise ConfigError(f"{where}: has no section 'model'")
    return _config(source["model"], f"{where}: model", _SIZES | _IGNORED)


def read_model_config(path: Path) -> ModelConfig:
    """A model config from a file: ModularForge's own, or just our ModelConfig's keys; the rest is default."""
    parsed = read_config_file(path)
    if "model" in parsed:
        return model_config(parsed, str(path))
    return _config(parsed, str(path), frozenset(field.name for field in fields(ModelConfig)))


def _config(section: Mapping[Any, Any], where: str, known: frozenset[str]) -> ModelConfig:
    for key, value in section.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {brief(key)}")
        if not isinstance(value, str | int | float | None) and key not in _STRUCTURED:
            raise ConfigError(f"{where}: {key}: expected one value, got {type(value).__name__}")
    sizes = {key: value for key, value in section.items() if key not in _IGNORED}
    return parse_model_config(ModelConfig().to_dict() | sizes, where)


def generation_defaults(
    source: Mapping[str, Any], config: ModelConfig
) -> tuple[GenerationDefaults, list[str]]:
    """ModularForge's sampling defaults with those of `evaluation:` that are in range; notes on the others."""
    defaults = GenerationDefaults(temperature=0.8, top_k=min(50, config.vocab_size), top_p=0.9)
    section = source.get("evaluation")
    given = section if isinstance(section, Mapping) else {}
    return with_given(defaults, given, config.vocab_size, "evaluation")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
