"""Expert modules: what an expert of a layer is in one version, and which of them a model uses.

A module has a slot, its number within its layer for as long as a coordinator lives: the checkpoint's experts
have their own ids for slots, and each later version takes the next one, which no other ever gets. Workers
know slots; people know expert ids and versions; a router's outputs are columns.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from moe_model.config import ModelConfig
from moe_model.layers.expert_key import ExpertKey


@dataclass(frozen=True, slots=True)
class ExpertFile:
    """A file with one module, which must be what it was when it was checked. `path` is absolute."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExpertModule:
    """`version` 0 is the checkpoint's; `file` None: the one in the checkpoint."""

    layer: int
    slot: int
    expert: int
    version: int = 0
    file: ExpertFile | None = None

    @property
    def key(self) -> ExpertKey:
        return self.layer, self.slot


def checkpoint_modules(keys: Iterable[ExpertKey]) -> tuple[ExpertModule, ...]:
    """The checkpoint's own modules: layer and expert id, which is the slot too."""
    return tuple(ExpertModule(layer, expert, expert) for layer, expert in keys)


@dataclass(frozen=True, slots=True)
class Catalog:
    """The modules in use: `columns[layer][column]` is what a router's output stands for.

    A dense layer has no columns.
    """

    columns: tuple[tuple[ExpertModule, ...], ...]

    @classmethod
    def of_checkpoint(cls, config: ModelConfig) -> Self:
        return cls(
            tuple(
                tuple(ExpertModule(layer, expert, expert) for expert in config.experts_of(layer))
                for layer in range(config.n_layers)
            )
        )

    @property
    def modules(self) -> Iterator[ExpertModule]:
        return (module for layer in self.columns for module in layer)

    @property
    def keys(self) -> Iterator[ExpertKey]:
        return (module.key for module in self.modules)
