"""The config of a model as another's config.json says, read for its sizes: for benchmarks and tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_model.checkpoint.hugging_face.folder import read_config, read_json
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG
from moe_model.config import ModelConfig
from moe_model.errors import ConfigError

_LAYERS = "num_hidden_layers"
# How weights are stored does not say what the model is.
_STORAGE = "quantization_config"


def config_like(path: Path, num_layers: int | None = None) -> ModelConfig:
    """Of a config.json, or of the one in a folder; with its first `num_layers` layers only.

    Raises CheckpointError, ConfigError naming the file and the key.
    """
    file = path / HUGGING_FACE_CONFIG if path.is_dir() else path
    settings = {name: value for name, value in read_json(file).items() if name != _STORAGE}
    if num_layers is not None:
        settings |= _first_layers(settings, num_layers, file)
    return read_config(settings, file)[1]


def _first_layers(settings: Mapping[str, Any], num_layers: int, file: Path) -> dict[str, Any]:
    """The keys that count layers or say something of each."""
    present = settings.get(_LAYERS)
    if type(present) is not int or num_layers > present:
        raise ConfigError(f"{file}: {_LAYERS} is {present}, {num_layers} layers are asked for")
    changed: dict[str, Any] = {_LAYERS: num_layers}
    if isinstance(types := settings.get("layer_types"), list):
        changed["layer_types"] = types[:num_layers]
    if isinstance(dense := settings.get("mlp_only_layers"), list):
        changed["mlp_only_layers"] = [each for each in dense if type(each) is int and each < num_layers]
    if type(last := settings.get("moe_layer_end_index")) is int:
        changed["moe_layer_end_index"] = min(last, num_layers - 1)
    return changed
