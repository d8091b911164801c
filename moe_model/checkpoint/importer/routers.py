"""Router weights for a folder of parts, which has none: zeros, random, or from a file.

Shapes: D d_model, E experts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from moe_model.checkpoint.importer.dict_table import DictTable
from moe_model.checkpoint.importer.modularforge import (
    ASSEMBLED_ROOTS,
    gate_name,
    noise_name,
    norm_name,
    router_shapes,
)
from moe_model.checkpoint.importer.torch_file import load_torch_file
from moe_model.checkpoint.importer.wrappers import Wrappers
from moe_model.checkpoint.random_model import module_generator
from moe_model.checkpoint.tensor_table import (
    SAFETENSORS_SUFFIX,
    SafetensorsTable,
    TensorTable,
    check_table,
    read_finite,
)
from moe_model.config import ModelConfig
from moe_model.errors import CheckpointError
from moe_model.families.base import Shapes

UNIFORM = "uniform"
KAIMING = "kaiming"
_CENTROIDS = "partition_centroids"
_KAIMING_SLOPE = 0.01
_ROUTER_NAME = re.compile(r"moe_layers\..*\.(router|ffn_norm)\..*")


@dataclass(frozen=True, slots=True)
class Routers:
    """Gate [E, D] and norm of every MoE layer, by ModularForge's names, and a word on where they are from."""

    tensors: Mapping[str, Tensor]
    note: str


def make_routers(choice: str, config: ModelConfig, seed: int, dtype: torch.dtype) -> Routers:
    """Raises CheckpointError for a file that has no routers for this model."""
    norms = {
        norm_name(layer, part): torch.full((config.d_model,), fill, dtype=dtype)
        for layer in range(config.n_layers)
        for part, fill in (("weight", 1.0), ("bias", 0.0))
    }
    # Assembling leaves the norm of an MoE layer as it was made; the experts have their own norm behind it.
    note = "the MoE layers' ffn_norm is 1 and 0, which is what ModularForge's own assembly gives"
    if choice in (UNIFORM, KAIMING):
        gates = _kaiming(config, seed) if choice == KAIMING else _zeros(config)
        return Routers(
            norms | {name: gate.to(dtype) for name, gate in gates.items()}, f"{choice} router; {note}"
        )
    wrappers = Wrappers()
    tensors = _from_file(_open(Path(choice), wrappers), config, dtype)
    if norms.keys() <= tensors.keys():
        note = "the MoE layers' ffn_norm is from there too"
    return Routers(norms | tensors, "; ".join([f"router from {choice}", *wrappers.notes, note]))


def _gates(config: ModelConfig) -> list[str]:
    return [gate_name(layer) for layer in range(config.n_layers)]


def _zeros(config: ModelConfig) -> dict[str, Tensor]:
    return {name: torch.zeros(config.n_experts, config.d_model) for name in _gates(config)}


def _kaiming(config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """He et al., "Delving Deep into Rectifiers", 2015: uniform, for a leaky ReLU of slope 0.01."""
    bound = sqrt(6 / ((1 + _KAIMING_SLOPE**2) * config.d_model))
    gates: dict[str, Tensor] = {}
    for layer, name in enumerate(_gates(config)):
        generator = module_generator(seed, "router", layer)
        gates[name] = (2 * torch.rand(config.n_experts, config.d_model, generator=generator) - 1) * bound
    return gates


def _open(path: Path, wrappers: Wrappers) -> TensorTable:
    if path.suffix == SAFETENSORS_SUFFIX:
        return wrappers.renamed(SafetensorsTable(path), ASSEMBLED_ROOTS)
    loaded = load_torch_file(path)
    if isinstance(loaded, Tensor):
        return DictTable(str(path), {_CENTROIDS: loaded})
    if isinstance(loaded, dict) and _CENTROIDS in loaded:
        return DictTable(str(path), {_CENTROIDS: loaded[_CENTROIDS]})
    return wrappers.table(wrappers.state_dict(loaded, str(path)), str(path), ASSEMBLED_ROOTS)


def _from_file(table: TensorTable, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Gates, and norms where the file has them; other parts of a whole model in the file are left alone."""
    names = frozenset(name for name in table.names if _ROUTER_NAME.fullmatch(name))
    if not names:
        return dict.fromkeys(_gates(config), _centroids(table, config, dtype))
    expected = router_shapes(config)
    norms = frozenset(name for name in expected if "ffn_norm" in name)
    noise = frozenset(noise_name(layer) for layer in range(config.n_layers))
    check_table(table, expected, noise if names & norms else noise | norms, names)
    return {name: read_finite(table, name, dtype) for name in sorted(names - noise)}


def _centroids(table: TensorTable, config: ModelConfig, dtype: torch.dtype) -> Tensor:
    name = _CENTROIDS if _CENTROIDS in table.names else next(iter(table.names), None)
    if name is None or (name != _CENTROIDS and len(table.names) > 1):
        raise CheckpointError(
            f"{table.where}: holds neither {gate_name(0)!r} and so on, nor one tensor of centroids"
        )
    expected: Shapes = {name: (config.n_experts, config.d_model)}
    check_table(table, expected, names=frozenset({name}))
    return read_finite(table, name, dtype)
