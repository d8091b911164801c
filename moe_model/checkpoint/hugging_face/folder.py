"""A Hugging Face folder of a family we know: its config and its tensors, checked before one is read."""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe_model.checkpoint.hugging_face.shards import ShardedTable
from moe_model.checkpoint.recognise import HUGGING_FACE_CONFIG, MAX_CONFIG_BYTES, refuse_pointer
from moe_model.checkpoint.tensor_table import check_table, read_finite
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError, ConfigError
from moe_model.families import HUGGING_FACE, family_named
from moe_model.families.base import Shapes
from moe_model.families.hugging_face import ConfigKeys, HuggingFaceModel, Sources
from moe_model.files import strict_json
from moe_model.files.strict_json import brief
from moe_model.files.whole_file import read_file

# Derived from the config, and written by old versions all the same.
_DERIVED = re.compile(r".*\.rotary_emb\.inv_freq")
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\..*")
_HEAD = "lm_head.weight"


class HuggingFaceFolder:
    """An opened folder. All names and shapes are right; no tensor has been read."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        """The files are open until the stack ends. Raises CheckpointError, ConfigError."""
        self.path = path
        self.settings = read_json(path / HUGGING_FACE_CONFIG)
        self._names, self.config = _read_config(self.settings, path / HUGGING_FACE_CONFIG)
        self._family = family_named(self.config.family)
        self._table = ShardedTable(path, stack)
        self._check_tensors()

    @property
    def is_bfloat16(self) -> bool:
        """Whether every matrix is; norms and routers may be stored wider."""
        matrices = (name for name in self._table.names if len(self._table.shape(name)) == 2)
        return all(self._table.dtype(name) == torch.bfloat16 for name in matrices)

    def shared(self, dtype: torch.dtype, routers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `importer.Source`; the folder has its own routers."""
        assert not routers
        tensors = self._read(self._shared_names(), dtype)
        if self._has_tied_head:
            head_VD = read_finite(self._table, _HEAD, dtype)
            if not torch.equal(head_VD, tensors["embedding.weight"]):
                raise CheckpointError(
                    f"{self.path}: tensor {_HEAD!r} differs from the embedding it is tied to"
                )
        return tensors

    def experts(self, dtype: torch.dtype) -> Iterator[tuple[int, int, dict[str, Tensor]]]:
        """As `importer.Source`: one expert at a time, whichever files its tensors are in."""
        for layer in self.config.moe_layers:
            for expert in self.config.experts_of(layer):
                yield layer, expert, self._read(self._expert_names(layer, expert), dtype)

    def _shared_names(self) -> dict[str, str]:
        names = self._family.shared_shapes(self.config)
        return _first(self._names.shared_sources(self.config, names))

    def _expert_names(self, layer: int, expert: int) -> dict[str, str]:
        return _first(self._names.expert_sources(self.config, layer, expert))

    @property
    def _has_tied_head(self) -> bool:
        """Whether the head is there although it is the embedding once more."""
        return self.config.tie_embedding and _HEAD in self._table.names

    def _read(self, names: Mapping[str, str], dtype: torch.dtype) -> dict[str, Tensor]:
        return {ours: read_finite(self._table, theirs, dtype) for ours, theirs in names.items()}

    def _check_tensors(self) -> None:
        config, names = self.config, self._table.names
        if config.num_expert_modules > len(names):
            raise CheckpointError(f"{self.path}: has {len(names)} tensors, too few for its config.json")
        shared, expert_shapes = self._family.shared_shapes(config), self._family.expert_shapes(config)
        expected: Shapes = {theirs: shared[ours] for ours, theirs in self._shared_names().items()}
        if self._has_tied_head:
            expected[_HEAD] = shared["embedding.weight"]
        for layer in config.moe_layers:
            for expert in config.experts_of(layer):
                theirs = self._expert_names(layer, expert)
                expected |= {name: expert_shapes[ours] for ours, name in theirs.items()}
        check_table(self._table, expected, names=frozenset(filter(self._counts, names)))

    def _counts(self, name: str) -> bool:
        """Not what is derived, nor layers beyond the last: they predict further tokens."""
        layer = _LAYER.fullmatch(name)
        is_beyond = layer is not None and int(layer[1]) >= self.config.n_layers
        return not (is_beyond or _DERIVED.fullmatch(name))


def _first(sources: Sources) -> dict[str, str]:
    return {ours: places[0].name for ours, places in sources.items()}


def read_json(path: Path) -> Mapping[str, Any]:
    """An object. Raises CheckpointError."""
    refuse_pointer(path)
    try:
        data = strict_json.loads(read_file(path, max_size=MAX_CONFIG_BYTES, follow_links=True))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected an object, got {type(data).__name__}")
    return data


def _read_config(settings: Mapping[str, Any], path: Path) -> tuple[HuggingFaceModel, ModelConfig]:
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in HUGGING_FACE:
        raise CheckpointError(
            f"{path}: model_type {brief(model_type)} is not one of {', '.join(HUGGING_FACE)}"
        )
    family = family_named(HUGGING_FACE[model_type])
    assert family.hugging_face is not None, "the registry names families that have such folders"
    keys = ConfigKeys(settings)
    try:
        if settings.get("quantization_config") is not None:
            raise ConfigError("quantization_config: quantised weights are not supported")
        config = family.hugging_face.read_config(keys)
        keys.finish()
        family.check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return family.hugging_face, config
