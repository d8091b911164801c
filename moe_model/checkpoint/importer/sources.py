"""Where a model comes from: one assembled file, or a folder of parts. Both are read piece by piece."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from moe_model.checkpoint.importer.modularforge import (
    EMBEDDING,
    HEAD,
    POSITIONS,
    SHARED_PREFIX,
    SHARED_ROOTS,
    check_assembled,
    check_derived,
    expert_name,
    shared_names,
    shared_shapes,
)
from moe_model.checkpoint.importer.torch_file import load_torch_file
from moe_model.checkpoint.importer.wrappers import Wrappers
from moe_model.checkpoint.reader import Checkpoint
from moe_model.checkpoint.recognise import SHARED_PART
from moe_model.checkpoint.tensor_table import TensorTable, check_table, read_finite
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families import family_of
from moe_model.families.base import Shapes
from moe_model.files.strict_json import brief

_EXPERT_PART = re.compile(r"expert_\d+\.pt")

ExpertTensors = tuple[int, int, dict[str, Tensor]]


class Source(Protocol):
    """A checked source. Tensors come out under our names, finite and in the dtype asked for."""

    @property
    def is_bfloat16(self) -> bool: ...
    def shared(self, dtype: torch.dtype, routers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`routers` are used in place of the source's own, by their names."""

    def experts(self, dtype: torch.dtype) -> Iterator[ExpertTensors]:
        """(layer, expert, tensors), in the order that is cheapest to read."""


class CheckpointSource:
    """A checkpoint of another format."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def is_bfloat16(self) -> bool:
        return self._checkpoint.dtype == torch.bfloat16

    def shared(self, dtype: torch.dtype, routers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert not routers, "it has its own, and others were refused"
        return self._checkpoint.read_shared(dtype)

    def experts(self, dtype: torch.dtype) -> Iterator[ExpertTensors]:
        config = self._checkpoint.config
        for layer in config.moe_layers:
            for expert in config.experts_of(layer):
                yield layer, expert, self._checkpoint.read_expert(layer, expert, dtype)


class AssembledSource:
    """A whole model in one file."""

    def __init__(self, table: TensorTable, config: ModelConfig, *, bare: bool) -> None:
        check_assembled(table, config, bare=bare)
        self._table, self._config = table, config

    @property
    def is_bfloat16(self) -> bool:
        return _is_bfloat16(self._table)

    def shared(self, dtype: torch.dtype, routers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _shared(self._table, self._config, dtype, routers)

    def experts(self, dtype: torch.dtype) -> Iterator[ExpertTensors]:
        names = family_of(self._config).expert_shapes(self._config)
        for layer in range(self._config.n_layers):
            for expert in range(self._config.n_experts):
                theirs = {name: expert_name(layer, expert, name) for name in names}
                tensors = {name: read_finite(self._table, their, dtype) for name, their in theirs.items()}
                yield layer, expert, tensors


class PartsSource:
    """A folder of the shared part and one file per expert, which holds that expert of every layer."""

    def __init__(self, folder: Path, config: ModelConfig, wrappers: Wrappers) -> None:
        self._folder, self._config, self._wrappers = folder, config, wrappers
        _check_expert_files(folder, config.n_experts)
        path = folder / SHARED_PART
        tensors = wrappers.state_dict(load_torch_file(path), str(path))
        self._table = wrappers.table(tensors, str(path), SHARED_ROOTS, prefix=SHARED_PREFIX)
        check_table(self._table, shared_shapes(config, self._table))
        check_derived(self._table, config)

    @property
    def is_bfloat16(self) -> bool:
        return _is_bfloat16(self._table)

    def shared(self, dtype: torch.dtype, routers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _shared(self._table, self._config, dtype, routers)

    def experts(self, dtype: torch.dtype) -> Iterator[ExpertTensors]:
        names = family_of(self._config).expert_shapes(self._config)
        for expert in range(self._config.n_experts):
            table = self._open_expert(expert, names)
            for layer in range(self._config.n_layers):
                yield layer, expert, {name: read_finite(table, f"{layer}.{name}", dtype) for name in names}

    def _open_expert(self, expert: int, shapes: Shapes) -> TensorTable:
        path = self._folder / f"expert_{expert}.pt"
        loaded = load_torch_file(path)
        if not isinstance(loaded, Mapping) or "experts_state_dict" not in loaded:
            raise CheckpointError(f"{path}: has no 'experts_state_dict': not one of ModularForge's experts")
        index = loaded.get("expert_idx")
        if type(index) is not int or index != expert:
            raise CheckpointError(f"{path}: expert_idx is {brief(index)}, its name says {expert}")
        self._check_expert_config(path, loaded.get("config"))
        layers = range(self._config.n_layers)
        tensors = self._wrappers.state_dict(loaded["experts_state_dict"], str(path))
        table = self._wrappers.table(tensors, str(path), frozenset(map(str, layers)))
        check_table(table, {f"{layer}.{name}": shape for layer in layers for name, shape in shapes.items()})
        return table

    def _check_expert_config(self, path: Path, config: object) -> None:
        if not isinstance(config, Mapping):
            raise CheckpointError(f"{path}: has no 'config'")
        for key in ("d_model", "d_ff", "n_layers"):
            given, expected = config.get(key), getattr(self._config, key)
            if type(given) is not int or given != expected:
                raise CheckpointError(f"{path}: config: {key} is {brief(given)}, the model's is {expected}")


def _check_expert_files(folder: Path, num_experts: int) -> None:
    present = {path.name for path in folder.iterdir() if _EXPERT_PART.fullmatch(path.name)}
    expected = {f"expert_{expert}.pt" for expert in range(num_experts)}
    if missing := expected - present:
        raise CheckpointError(f"{folder}: {_first(missing)} is missing, n_experts is {num_experts}")
    if extra := present - expected:
        raise CheckpointError(f"{folder}: {_first(extra)} is one too many, n_experts is {num_experts}")


def _first(names: set[str]) -> str:
    return min(names, key=lambda name: (len(name), name))


def _is_bfloat16(table: TensorTable) -> bool:
    return all(table.dtype(name) == torch.bfloat16 for name in table.names - {POSITIONS})


def _shared(
    table: TensorTable, config: ModelConfig, dtype: torch.dtype, routers: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, theirs in shared_names(config).items():
        if theirs in routers:
            tensors[name] = routers[theirs]
        else:
            tied = theirs == EMBEDDING and EMBEDDING not in table.names
            tensors[name] = read_finite(table, HEAD if tied else theirs, dtype)
    return tensors
